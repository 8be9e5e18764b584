"""A deployment that is gone is looked at once more, and then no longer."""

from gptoss_operator.plan.applications import Absent
from gptoss_operator.substrates.kuberay.substrate import KubeRay
from tests.unit.operator.test_kuberay_refusals import DEPLOYMENT, KEY, Cluster, cluster, kuberay, wish

__all__ = ["cluster", "kuberay"]


async def test_nothing_is_left_of_a_deployment_that_is_gone(kuberay: KubeRay, cluster: Cluster) -> None:
    kuberay.ask(DEPLOYMENT, wish())
    awake = await kuberay.reconcile(KEY, complete=lambda: True)
    assert awake.look_again is not None
    assert kuberay.forget(DEPLOYMENT)
    ending = await kuberay.reconcile(KEY, complete=lambda: True)
    assert ending.look_again is not None, "its RayService is still there"
    cluster.raw = None
    gone = await kuberay.reconcile(KEY, complete=lambda: True)
    assert gone.look_again is None
    for memory in (kuberay._views, kuberay._kept, kuberay._urls):
        assert not memory


async def test_one_that_sleeps_is_looked_at_again(kuberay: KubeRay) -> None:
    kuberay.ask(DEPLOYMENT, Absent())
    assert (await kuberay.reconcile(KEY, complete=lambda: True)).look_again is not None
