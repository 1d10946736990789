"""
Compare attentions, and what one uses now, on one task and budget: a YAML file names entrants, task, budget and seeds.

    synkhorn compare benchmarks/synthetic/copy.yaml
    synkhorn compare benchmarks/text/brown.yaml --data_dir packages --report brown

Table, figures and plots are written beside the file, or where `--report` says, and again after each result. A training
that is finished is not done again, and one that was interrupted resumes; `--keep_recorded` goes on from a report whose
trainings are gone, on another machine for example. The fields of the file are those of
`scripts.common.comparison_spec.ComparisonSpec`; `benchmarks/` has files to start from.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .common.arguments import parse, read_fields
from .common.comparison_spec import read_spec


@dataclass
class CompareArguments:
    """What is compared, and where."""

    file: str = field(metadata={"help": "The YAML or JSON file."})
    output_dir: str = field(
        default="runs/compare", metadata={"help": "Folder of the trainings, one of its own each file."}
    )
    report: str | None = field(
        default=None,
        metadata={"help": "Path without ending of table, figures and plots; beside the file if not given."},
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder of packages of data that were unpacked, and not installed."}
    )
    keep_recorded: bool = field(
        default=False,
        metadata={"help": "Keep the results that the report has of the same cells, and train only what it lacks."},
    )


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Run the comparison of a file, and return its results."""
    (asked,) = parse([CompareArguments], arguments, __doc__, first="file")
    path = Path(asked.file)
    spec = read_spec(read_fields("file", asked.file))
    # seconds of imports, once it is clear that the file is right
    from .training.comparison import compare

    output, report_path = Path(asked.output_dir) / path.stem, Path(asked.report or path.with_suffix(""))
    return compare(spec, output, report_path, f"synkhorn compare {asked.file}", asked.data_dir, asked.keep_recorded)


if __name__ == "__main__":
    main()
