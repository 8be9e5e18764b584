{{/* Out: DNS, and TCP to everything but link-local and clouds' metadata addresses: API server, Ray clusters, stores. */}}
{{- define "gptoss.egress" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
- to:
    - ipBlock:
        cidr: 0.0.0.0/0
        {{- if not .Values.networkPolicy.allowLinkLocal }}
        except: ["100.100.100.200/32", "168.63.129.16/32", "169.254.0.0/16", "192.0.0.192/32"]
        {{- end }}
    - ipBlock:
        cidr: "::/0"
        {{- if not .Values.networkPolicy.allowLinkLocal }}
        except: ["fd00:ec2::/32", "fd20:ce::254/128", "fe80::/10"]
        {{- end }}
  ports: [{port: 1, endPort: 65535, protocol: TCP}]
{{- end }}
