"""
Do embeddings of whole documents find the document that a sentence is from, wherever it occurs?

    python benchmarks/embeddings/late_queries.py pairs --data_dir packages --output pairs.jsonl
    python benchmarks/embeddings/late_queries.py measure --data_dir packages --minilm minilm --long minilm-4096 trained

`pairs` writes a sentence and its document for each document of the Brown corpus, to train with `synkhorn finetune
embeddings`; `measure` asks for documents of the Linux kernel, and writes `late_queries.json` and `.md` beside itself.
What a model found is kept in `runs/late_queries`, so that a run that is broken off goes on.
"""

import argparse
import json
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from transformers import AutoTokenizer

from synkhorn.scripts.data.brown import load_brown
from synkhorn.scripts.data.kernel_docs import load_kernel_docs

# tokens before the query: one query of a document is drawn from each part
PARTS = ((0, 512), (512, 1024), (1024, 2048), (2048, 4000))
WORDS = (8, 40)
WINDOW = 510


def sentences(text: str) -> list[tuple[int, str]]:
    """Where each sentence of 8 to 40 words begins, and the sentence on one line."""
    matches = re.finditer(r"[A-Z].*?[.!?](?=\s)", text, re.DOTALL)
    found = [(match.start(), " ".join(match[0].split())) for match in matches]
    return [(start, sentence) for start, sentence in found if WORDS[0] <= len(sentence.split()) <= WORDS[1]]


def queries(text: str, tokenizer, rng: random.Random) -> dict[tuple[int, int], str]:
    """A sentence from each of `PARTS` of a document that is long enough."""
    starts = [start for start, _ in tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"][1:-1]]
    found = sentences(text)
    drawn = {}
    for first, stop in PARTS:
        if stop <= len(starts):
            own = [sentence for start, sentence in found if starts[first] <= start < starts[stop - 1]]
            if own:
                drawn[first, stop] = rng.choice(own)
    return drawn


def write_pairs(output: Path, data_dir: str | None, minilm: str) -> None:
    tokenizer, rng = AutoTokenizer.from_pretrained(minilm), random.Random(0)
    with output.open("w", encoding="utf-8") as file:
        for text in load_brown(data_dir)["text"]:
            drawn = queries(text, tokenizer, rng)
            if drawn:
                query = rng.choice(list(drawn.values()))
                file.write(json.dumps({"query": query, "document": text}) + "\n")


def normalised(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def windows(text: str, tokenizer) -> list[str]:
    """A document as pieces of 510 tokens."""
    starts = [start for start, _ in tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"][1:-1]]
    edges = [*starts[::WINDOW], len(text)]
    return [text[start:stop] for start, stop in zip(edges, edges[1:], strict=False)]


def whole(path: str, max_length: int, name: str) -> Callable:
    """Similarities by one embedding of each document, cut at `max_length` tokens."""

    def similarities(texts: list[str], asked: list[str]) -> dict[str, np.ndarray]:
        model = SentenceTransformer(path, trust_remote_code=True)
        model.max_seq_length = max_length
        embed = {"normalize_embeddings": True, "batch_size": 4}
        return {name: model.encode(asked, **embed) @ model.encode(texts, **embed).T}

    return similarities


def by_windows(path: str) -> Callable:
    """Similarities by the mean embedding of a document's windows, and those by its best window."""

    def similarities(texts: list[str], asked: list[str]) -> dict[str, np.ndarray]:
        model = SentenceTransformer(path)
        model.max_seq_length = WINDOW + 2
        pieces = [windows(text, model.tokenizer) for text in texts]
        embedded = model.encode([piece for of_text in pieces for piece in of_text], normalize_embeddings=True)
        of_texts = np.split(embedded, np.cumsum([len(of_text) for of_text in pieces])[:-1])
        questions = model.encode(asked, normalize_embeddings=True)
        mean = questions @ normalised(np.stack([vectors.mean(0) for vectors in of_texts])).T
        best = np.stack([(questions @ vectors.T).max(-1) for vectors in of_texts], axis=-1)
        return {"MiniLM, mean of windows": mean, "MiniLM, best window": best}

    return similarities


def word_counts(texts: list[str], asked: list[str]) -> dict[str, np.ndarray]:
    vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words="english")
    documents = vectorizer.fit_transform(texts)
    return {"TF-IDF": (vectorizer.transform(asked) @ documents.T).toarray()}


def kept(path: Path, similarities: Callable, *texts: list[str]) -> tuple[dict[str, np.ndarray], float]:
    """The similarities and the CPU seconds that they took, read from `path` or written there."""
    if not path.exists():
        start = time.process_time()
        found = similarities(*texts)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".part.npz")
        np.savez(scratch, seconds=time.process_time() - start, **found)
        scratch.replace(path)
    with np.load(path) as saved:
        return {name: saved[name] for name in saved.files if name != "seconds"}, float(saved["seconds"])


def reciprocal_ranks(similarities: np.ndarray, right: np.ndarray) -> np.ndarray:
    """1 / the place of the right document among all, one for each query."""
    own = similarities[np.arange(len(right)), right]
    return 1 / (similarities >= own[:, None]).sum(-1)


def measure(data_dir: str | None, minilm: str, long: list[str], documents: int | None, folder: Path) -> dict:
    texts = list(load_kernel_docs(data_dir)["text"])
    texts = texts if documents is None else random.Random(0).sample(texts, documents)
    tokenizer, rng = AutoTokenizer.from_pretrained(minilm), random.Random(0)
    drawn = [queries(text, tokenizer, rng) for text in texts]
    asked = [(part, document, query) for document, of_text in enumerate(drawn) for part, query in of_text.items()]
    right, part_of = np.array([document for _, document, _ in asked]), [part for part, _, _ in asked]
    asked = [query for _, _, query in asked]
    ways = {"words": word_counts, "cut": whole(minilm, 512, "MiniLM, cut at 512"), "windows": by_windows(minilm)}
    for path in long:
        ways[Path(path).name] = whole(path, 4096, f"Sinkhorn 4,096, {Path(path).name}")
    found, seconds = {}, {}
    for way, similarities in ways.items():
        own, cost = kept(folder / f"{way}-{len(texts)}.npz", similarities, texts, asked)
        found |= own
        seconds |= dict.fromkeys(own, cost)
    results = {"documents": len(texts), "queries": {}, "models": {name: {} for name in found}, "seconds": seconds}
    for part in PARTS:
        own = np.array([part == other for other in part_of])
        label = f"{part[0]:,} to {part[1]:,}"
        results["queries"][label] = int(own.sum())
        for name, similarities in found.items():
            ranks = reciprocal_ranks(similarities[own], right[own])
            results["models"][name][label] = {"accuracy@1": float((ranks == 1).mean()), "mrr": float(ranks.mean())}
    return results


def table(results: dict) -> str:
    parts = list(results["queries"])
    lines = [
        f"# Finding one of {results['documents']} documents by a sentence of it, by where the sentence occurs (tokens)",
        "",
        "Accuracy at 1 / mean reciprocal rank; the seconds are those of all documents and queries.",
        "",
        "| | " + " | ".join(parts) + " | CPU seconds |",
        "|---" * (len(parts) + 2) + "|",
        "| queries | " + " | ".join(str(count) for count in results["queries"].values()) + " | |",
    ]
    for name, scores in results["models"].items():
        cells = [f"{scores[part]['accuracy@1']:.3f} / {scores[part]['mrr']:.3f}" for part in parts]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {results['seconds'][name]:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=["pairs", "measure"])
    parser.add_argument("--data_dir", help="folder of unpacked packages")
    parser.add_argument("--minilm", default="sentence-transformers/all-MiniLM-L6-v2", help="its folder or name")
    parser.add_argument("--long", nargs="*", default=[], help="Sinkhorn checkpoints of 4,096 tokens")
    parser.add_argument("--documents", type=int, help="how many are searched; all if not given")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/late_queries"), help="what a model found")
    parser.add_argument("--output", type=Path, default=Path("pairs.jsonl"), help="of `pairs`")
    arguments = parser.parse_args()
    if arguments.job == "pairs":
        write_pairs(arguments.output, arguments.data_dir, arguments.minilm)
        return
    results = measure(arguments.data_dir, arguments.minilm, arguments.long, arguments.documents, arguments.output_dir)
    report = Path(__file__).with_suffix(".json")
    report.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    report.with_suffix(".md").write_text(table(results), encoding="utf-8")


if __name__ == "__main__":
    main()
