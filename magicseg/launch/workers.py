"""The number of workers that an array task runs."""

from magicseg.config.run import Config
from magicseg.config.stage_declarations import STAGES
from magicseg.launch.profile import Resources
from magicseg.stages.placement import can_use_gpus


def workers_per_task(config: Config, stage: str, resources: Resources) -> int:
    """Return how many workers a task with these resources runs: one per GPU, and one for a stage on CPUs.

    Raises BackendError, ConfigError for an unknown back end.
    """
    if stage not in STAGES or resources.gpus_per_node < 2 or not can_use_gpus(config, stage):
        return 1
    return resources.gpus_per_node
