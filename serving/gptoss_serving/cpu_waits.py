"""A plugin of vLLM's, loaded in each of its processes: on a CPU they sleep while they wait for each other.

vLLM's engine and its worker wait for one another in loops around ``sched_yield``, as fits GPUs, whose CPUs have little
else to do. Where the CPU is the accelerator the loops take it from what they wait for; on Linux 6.18 with two CPUs they
keep all other processes of the machine from running, for seconds at a time. vLLM 0.32 has the other way built in, for
old Pythons, and no setting for it.
"""

from vllm.distributed import utils
from vllm.platforms import current_platform


def install() -> None:
    """Have this process' loops sleep, if it computes on a CPU."""
    if current_platform.is_cpu():
        utils.USE_SCHED_YIELD = False
