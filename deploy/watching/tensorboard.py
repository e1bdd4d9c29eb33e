"""TensorBoard event files: `tensorboard --logdir RUN/trackers/tensorboard`."""

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import FileWriter
from torch.utils.tensorboard.summary import text as text_summary

from deploy.watching.sink import Numbers, TrackedRun


class TensorBoardSink:
    """Scalars by their names, one event a step. A resume adds a file to the same directory, and hides steps that are made again."""

    def __init__(self, run: TrackedRun) -> None:
        self._writer = FileWriter(str(run.directory))
        if run.step:
            self._writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step=run.step + 1)
        lines = "".join(f"    {name}: {value}\n" for name, value in run.config.items())
        self._writer.add_summary(text_summary("config", lines), run.step)

    def log(self, step: int, numbers: Numbers) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._writer.add_summary(Summary(value=values), step)

    def alarm(self, step: int, text: str) -> None:
        self._writer.add_summary(text_summary("alarms", text), step)

    def close(self, finished: bool) -> None:
        self._writer.close()
