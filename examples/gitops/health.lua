-- Argo CD's health of a GptOssDeployment, by conditions alone. It agrees with kstatus, and so with Flux and kubectl.
local health = {status = "Progressing", message = "Waiting for the operator"}
local status = obj.status
if status == nil or status.conditions == nil then
  return health
end
if status.observedGeneration ~= nil and status.observedGeneration ~= obj.metadata.generation then
  health.message = "Waiting for the operator to see the latest change"
  return health
end
local conditions = {}
for _, condition in ipairs(status.conditions) do
  conditions[condition.type] = condition
end
local ready = conditions["Ready"]
local stalled = conditions["Stalled"]
local reconciling = conditions["Reconciling"]
if stalled ~= nil and stalled.status == "True" then
  health.status = "Degraded"
  health.message = stalled.reason .. ": " .. (stalled.message or "")
elseif reconciling ~= nil and reconciling.status == "True" then
  health.message = reconciling.reason .. ": " .. (reconciling.message or "")
elseif ready ~= nil then
  health.message = ready.reason .. ": " .. (ready.message or "")
  if ready.status == "True" then
    -- Asleep is healthy: the first request wakes it. Suspended is what somebody asked for.
    health.status = ready.reason == "Suspended" and "Suspended" or "Healthy"
  end
end
return health
