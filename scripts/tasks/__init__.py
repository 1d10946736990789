"""The tasks of `synkhorn finetune`, one file each."""

from .classification import Classification
from .multiple_choice import MultipleChoice
from .question_answering import QuestionAnswering
from .task import Task
from .token_classification import TokenClassification

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "token-classification": TokenClassification,
    "question-answering": QuestionAnswering,
    "multiple-choice": MultipleChoice,
}
