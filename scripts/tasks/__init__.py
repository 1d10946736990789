"""The tasks of `synkhorn finetune` and `synkhorn evaluate`, one file each."""

from .classification import Classification
from .language_modeling import LanguageModeling
from .multiple_choice import MultipleChoice
from .question_answering import QuestionAnswering
from .seq2seq import Seq2Seq
from .task import FinetuneTask, Task
from .token_classification import TokenClassification

TASKS: dict[str, type[FinetuneTask]] = {
    "classification": Classification,
    "token-classification": TokenClassification,
    "question-answering": QuestionAnswering,
    "multiple-choice": MultipleChoice,
    "seq2seq": Seq2Seq,
}
# with what is measured, but not fine-tuned
MEASURED: dict[str, type[Task]] = {**TASKS, "language-modeling": LanguageModeling}
