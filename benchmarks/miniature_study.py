"""What training brings in the miniature, and what the counterfactual loss brings: several seeds, held-out scenes.

    python benchmarks/miniature_study.py --seeds 0 1 2 --out study.json

For every seed (of the data, the weights and the held-out scenes alike) one data set is made and two models are
trained on it, with and without the counterfactual loss, from the same first weights and in the same order of samples.
The reference is the untrained model of the same seed. Printed: mIoU per seed, mean and sample standard deviation.
Exits 0 whatever comes out.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from magicseg.config import load_config
from magicseg.evaluate.heldout import evaluate_heldout
from magicseg.execute.pool import default_workers, run_stage
from magicseg.model.segmenter import load_segmenter
from magicseg.run import STAGES, Run
from magicseg.store.kept import KeptSamples
from magicseg.train.loop import train


def main() -> None:
    """Run the study and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the runs")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    arguments = parser.parse_args()
    rows = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            overrides = [*arguments.set, f"seed={seed}"]
            run = Run.create(Path(folder) / "run", load_config(preset="miniature", overrides=overrides))
            for stage in STAGES:
                run_stage(run, stage, workers=default_workers())
            row = {"seed": seed}
            for name, weight in (("with", run.config.train.counterfactual_weight), ("without", 0.0)):
                settings = run.config.train.model_copy(update={"counterfactual_weight": weight})
                trained = train(
                    KeptSamples.of(run),
                    run.vocabulary,
                    settings,
                    Path(folder) / name,
                    seed=seed,
                    data_fingerprint=run.fingerprints["mask"].digest,
                )
                scores = evaluate_heldout(
                    load_segmenter(trained.model_dir),
                    run.vocabulary,
                    run.config.evaluate,
                    image_size=run.config.generate.size,
                    seed=seed,
                    model_seed=seed,
                )
                row[name] = scores["miou"]
                row[f"{name}_seconds"] = trained.seconds
                row["untrained"] = scores["baselines"]["untrained"]["miou"]
                row["background"] = scores["baselines"]["background"]["miou"]
            rows.append(row)
            print(json.dumps(row), flush=True)
    columns = ("background", "untrained", "without", "with")
    print("\n| seed |", " | ".join(columns), "| with - without |")
    print("|---|" + "---|" * (len(columns) + 1))
    for row in rows:
        cells = [*(f"{row[name]:.3f}" for name in columns), f"{row['with'] - row['without']:+.3f}"]
        print(f"| {row['seed']} |", " | ".join(cells), "|")
    if len(rows) > 1:
        spreads = [[row[name] for row in rows] for name in columns]
        spreads.append([row["with"] - row["without"] for row in rows])
        print(
            "| mean (s.d.) |",
            " | ".join(f"{statistics.mean(v):.3f} ({statistics.stdev(v):.3f})" for v in spreads),
            "|",
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
