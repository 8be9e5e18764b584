{{/* Out: DNS, and TCP to everything but link-local addresses: API server, Ray clusters, object stores. */}}
{{- define "gptoss.egress" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
- to:
    - ipBlock:
        cidr: 0.0.0.0/0
        {{- if not .Values.networkPolicy.allowLinkLocal }}
        except: [169.254.0.0/16]
        {{- end }}
    - ipBlock:
        cidr: "::/0"
        {{- if not .Values.networkPolicy.allowLinkLocal }}
        except: ["fe80::/10", "fd00:ec2::254/128"]
        {{- end }}
  ports: [{port: 1, endPort: 65535, protocol: TCP}]
{{- end }}
