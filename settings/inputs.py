"""What a run reads besides its settings: every settings class of a recipe says it with `inputs()`."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Maker:
    """A module that makes a folder where it is missing."""

    setting: str  # that names the module, for messages
    module: str
    folder: str
    options: dict[str, int] = field(default_factory=dict)  # people: 100

    @property
    def command(self) -> list[str]:
        """What follows `python`: -m <module> --out <folder> and the options."""
        options = [f"--{name}={value}" for name, value in self.options.items()]
        return ["-m", self.module, "--out", self.folder, *options]


@dataclass(frozen=True)
class Inputs:
    """What decides a run's results besides its settings and the code that every such run shares."""

    data: list[str] = field(default_factory=list)  # datasets: folders or hub ids
    models: list[str] = field(default_factory=list)  # folders or hub ids
    files: list[str] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)  # functions of unlearn_losses
    makers: list[Maker] = field(default_factory=list)  # of data and models that are made where they are missing
