"""Labels that clients and administrators choose stay bounded."""

from gptoss_gateway.demand import Place
from gptoss_gateway.errors import Limit, TooManyHeldError
from gptoss_gateway.metering import MAX_TENANTS, OTHER_TENANTS, Metering
from gptoss_gateway.usage import Usage
from tests.unit.gateway.models import model


def test_tenants_beyond_a_bound_share_their_series():
    metering = Metering()
    metering.meet(model())
    tenants = [f"tenant-{number}" for number in range(MAX_TENANTS + 3)]
    metering.watch_tenants(lambda: {(tenant, Place.WAITING): 2 for tenant in tenants})
    for tenant in tenants:
        metering.note_limit(TooManyHeldError("no", limit=Limit.HELD_IN_ALL, tenant=tenant, retry_after=1))
        metering.tokens(model(), tenant, Usage(input=1, cached=0, output=0, reasoning=0, estimated=False))
    value = metering.registry.get_sample_value
    own = {"tenant": tenants[0]}
    others = {"tenant": OTHER_TENANTS}
    assert value("gptoss_gateway_limited_requests_total", {**own, "limit": "held_in_all"}) == 1
    assert value("gptoss_gateway_limited_requests_total", {**others, "limit": "held_in_all"}) == 3
    assert value("gptoss_gateway_tenant_requests", {**others, "place": "waiting"}) == 6
    for family in metering.registry.collect():
        labelled = {sample.labels["tenant"] for sample in family.samples if "tenant" in sample.labels}
        assert len(labelled) in (0, MAX_TENANTS + 1)


def test_a_leak_would_show():
    metering = Metering()
    metering.watch_tasks(lambda: 7)
    value = metering.registry.get_sample_value
    assert value("gptoss_gateway_tasks") == 7
    assert (value("process_resident_memory_bytes") or 0) > 2**20
    assert (value("process_open_fds") or 0) > 0
