"""A benchmark file -> base, gold, every method, their evaluations and a report: python run_benchmark.py benchmark=demo

Stages that are finished with the same settings and inputs are skipped: an interrupted run goes on where it stopped.
Finished stages that would be made anew are named, and replaced only with overwrite=true.
"""

from pathlib import Path

from settings.results import RunBenchmark
from settings.runs import lock_folder
from settings.script import script


@script("run_benchmark", RunBenchmark)
def main(settings: RunBenchmark) -> None:
    # here, so that --help and a mistyped setting need not wait for them
    from hydra.core.hydra_config import HydraConfig
    from rich.console import Console

    from benchmark.plan import write_plan
    from benchmark.stages import run_stages
    from report.__main__ import write_report

    folder = Path(settings.results_dir)
    lock_folder(folder.resolve(), "results_dir")
    benchmark = settings.benchmark
    typed = [f"benchmark={benchmark.name}"]
    if HydraConfig.initialized():
        typed = list(HydraConfig.get().overrides.task)
    records = run_stages(benchmark, folder, overwrite=settings.overwrite, workers=settings.workers)
    write_plan(benchmark, folder, records, typed)

    console = Console(width=140)
    write_report(folder, console)
    minutes = sum(record["seconds"] for record in records.values()) / 60
    memory = max(record["peak_memory_gb"] for record in records.values())
    cost = f"{minutes:.1f} minutes of work, at most {memory:.1f} GB of memory"
    console.print(f"{cost}; all figures: {folder / 'results.parquet'}, as rows: {folder / 'results.csv'}")
    console.print(f"report: {folder / 'report.html'}")


if __name__ == "__main__":
    main()
