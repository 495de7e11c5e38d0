"""door"""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from rich.console import Console

from benchmark.stages import run_stages, write_plan
from report.__main__ import make
from report.tables import print_table
from settings.results import RunBenchmark
from settings.script import script


@script("run_benchmark", RunBenchmark)
def main(settings: RunBenchmark) -> None:
    folder, benchmark = Path(settings.results_dir), settings.benchmark
    typed = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else [f"benchmark={benchmark.name}"]
    records = run_stages(benchmark, folder)
    write_plan(benchmark, folder, records, typed)
    made = make(folder)
    console = Console(width=140)
    print_table(made, console)
    minutes = sum(record["seconds"] for record in records.values()) / 60
    memory = max(record["peak_memory_gb"] for record in records.values())
    console.print(
        f"{minutes:.1f} minutes of work, at most {memory:.1f} GB of memory; all columns: {folder / 'results.csv'}"
    )
    console.print(f"report: {folder / 'report.html'}")


if __name__ == "__main__":
    main()
