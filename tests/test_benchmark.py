"""The benchmark: which models it builds, and how it counts growth."""

import pytest

from synkhorn.scripts import benchmark, report


def test_growth_is_counted_where_the_length_doubles():
    figures = {1: 10.0, 2: 25.0, 3: 30.0, 4: 100.0}
    results = [
        {"variant": "dense", "length": length} | dict.fromkeys(benchmark.MEASURED, value)
        for length, value in figures.items()
    ]
    growth = benchmark.growth(results)
    assert [(row["from"], row["to"], row["forward ms"]) for row in growth] == [(1, 2, 2.5), (2, 4, 4.0)]
    assert benchmark.growth_table(results)[-1] == "| `dense` | 2 to 4 | 4.00 | 4.00 | 4.00 | 4.00 |"
    assert benchmark.growth_table(results[:1]) == []


@pytest.mark.parametrize("variant", benchmark.VARIANTS["sinkhorn"])
def test_every_sinkhorn_variant_can_be_measured(variant):
    sizes = ["--family", "sinkhorn", "--hidden_size", "8", "--num_attention_heads", "2", "--block_size", "4"]
    figures = benchmark.measure(variant, 16, benchmark.parser().parse_args([*sizes, "--repeats", "1"]))
    assert set(figures) == set(benchmark.MEASURED) and figures["forward+backward ms"] > 0


def test_an_unknown_variant_is_named():
    with pytest.raises(ValueError, match="variants='dense' is unknown"):
        benchmark.model_fields("sinkhorn", "dense", 4)


def test_the_machine_is_described_from_anywhere(tmp_path, monkeypatch):
    here = report.machine()
    monkeypatch.chdir(tmp_path)
    assert report.machine() == here and "cores" in here["cpu"]
    # where there is no git
    monkeypatch.setenv("PATH", "")
    assert "commit" not in report.machine()
