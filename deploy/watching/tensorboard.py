"""TensorBoard event files: `tensorboard --logdir RUN/trackers/tensorboard`."""

from torch.utils.tensorboard import SummaryWriter

from deploy.watching.sink import Numbers, TrackedRun


class TensorBoardSink:
    """Scalars by their names. A resume adds a file to the same directory, and hides steps that are made again."""

    def __init__(self, run: TrackedRun) -> None:
        self._writer = SummaryWriter(str(run.directory), purge_step=run.step + 1 if run.step else None)
        lines = "".join(f"    {name}: {value}\n" for name, value in run.config.items())
        self._writer.add_text("config", lines, run.step)

    def log(self, step: int, numbers: Numbers) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def alarm(self, step: int, text: str) -> None:
        self._writer.add_text("alarms", text, step)

    def close(self, finished: bool) -> None:
        self._writer.close()
