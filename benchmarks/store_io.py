"""The store writes and reads pairs with masks about as fast as a folder of JPEG and PNG files, with far fewer files.

Reference: the same images as files that Pillow writes and reads: PNG with PNG masks for the lossless store, JPEG of
quality 95 with PNG masks for the JPEG store. The store flushes to disk and hashes its files; the folder does neither.
Ratios are the store's rate over the folder's in the same repeat: above 1 the store is faster.

    python benchmarks/store_io.py
    python benchmarks/store_io.py --images PHOTOGRAPHS --samples 128
    python benchmarks/store_io.py --samples 16 --size 128 --repeats 1
"""

import argparse
import shutil
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from measure import medians, print_table
from scenes import commit_all, folder_mib, make_run, read_files, triples, write_folder, write_store

from magicseg.data.kept_samples import KeptSamples


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of photographs (.jpg); else synthetic scenes")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--reads", type=int, default=100, help="single samples read at random")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    count = arguments.samples
    scenes = list(triples(count, arguments.size, arguments.images))
    chosen = np.random.default_rng(1).integers(0, count, arguments.reads).tolist()
    source = "photographs" if arguments.images else "synthetic scenes"
    for codec, suffix in (("lossless", ".png"), ("jpeg", ".jpg")):
        with tempfile.TemporaryDirectory() as temporary:
            store, files = Path(temporary, "run"), Path(temporary, "files")
            run = make_run(store, scenes, codec=codec)
            commit_all(run)

            def write_files(files: Path = files, suffix: str = suffix) -> None:
                shutil.rmtree(files, ignore_errors=True)
                write_folder(files, scenes, suffix=suffix)

            written = medians({"store": partial(write_store, run, scenes), "folder": write_files}, arguments.repeats)
            samples = KeptSamples.of(run)
            read = medians(
                {
                    "store": lambda samples=samples: [samples.read(np.array([i])) for i in chosen],
                    "folder": lambda files=files, suffix=suffix: [
                        read_files(files, i, suffix=suffix) for i in chosen
                    ],
                },
                arguments.repeats,
            )
            numbers = {
                name: (count / written[name], 1000 * read[name] / len(chosen), folder_mib(path) / count)
                for name, path in (("store", run.store.path), ("folder", files))
            }
            counted = {
                "store": sum(file.is_file() for file in run.store.path.rglob("*")),
                "folder": 3 * count,
            }
        of_store, of_folder = numbers["store"], numbers["folder"]
        print_table(
            f"{count} {source}, {arguments.size} px, image + counterfactual + mask (median of {arguments.repeats})",
            ["", "write samples/s", "random read ms", "kB/sample", "files"],
            [
                [f"store, {codec}", of_store[0], of_store[1], of_store[2] * 2**20 / 1000, counted["store"]],
                [
                    f"folder, *{suffix} + png",
                    of_folder[0],
                    of_folder[1],
                    of_folder[2] * 2**20 / 1000,
                    counted["folder"],
                ],
                [
                    "ratio (rates, sizes)",
                    of_store[0] / of_folder[0],
                    of_folder[1] / of_store[1],
                    of_store[2] / of_folder[2],
                    "",
                ],
            ],
        )


if __name__ == "__main__":
    main()
