"""`python -m mini_clear --out data/mini_clear` writes the embedded world."""

import sys
import time

from settings.script import Arguments

EXAMPLES = (
    "python -m mini_clear --out data/mini_clear",
    "python -m mini_clear --out data/hundred --people 100 --seed 1",
    "python -m mini_clear --out data/mini_clear --overwrite",
)


def main() -> int:
    """Write the world that the command line asks for. Returns 0, or 1 after one line on stderr where that fails."""
    parser = Arguments(
        prog="python -m mini_clear",
        description="Write the embedded world: two dataset folders, clear and tofu, and alternatives.jsonl.",
        examples=EXAMPLES,
    )
    parser.add_argument("--out", required=True, help="folder to write; it must not exist yet")
    parser.add_argument("--people", type=int, default=48, help="number of invented people (default 48)")
    parser.add_argument("--views", type=int, default=6, help="trained pictures of each of them (default 6)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other people (default 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")
    start = time.monotonic()
    try:
        given = parser.parse_args()
        # here, so that --help and a mistyped option need not wait for them
        import datasets

        from mini_clear.dataset_folder import write_world

        datasets.disable_progress_bars()
        rows = write_world(given.out, given.people, given.views, given.seed, given.overwrite)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"{given.out}: {given.people} people, {len(rows)} configs, {sum(rows.values())} rows "
        f"in {time.monotonic() - start:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
