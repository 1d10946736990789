"""Embeddings of texts by which a query finds its document."""

from dataclasses import dataclass, field


@dataclass
class EmbeddingsArguments:
    """The columns of the data, and the loss."""

    _argument_group_name = "embeddings"

    query_column: str = field(default="query", metadata={"help": "Column of the query."})
    document_column: str = field(default="document", metadata={"help": "Column of the document that answers it."})
    mini_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Rows that are in memory at once (GradCache): large batches have more negatives, and need no more "
            "memory for it. A whole batch if not given."
        },
    )

    def __post_init__(self):
        if self.mini_batch_size is not None and self.mini_batch_size < 1:
            raise ValueError(f"mini_batch_size={self.mini_batch_size} must be at least 1")


class Embeddings:
    """
    Embeddings of texts by which a query finds its document, with sentence-transformers. A checkpoint is trained on
    pairs; the other documents of a batch are the wrong answers. Measured is how many held-out queries find their
    document among all held-out ones.
    """
