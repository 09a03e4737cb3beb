"""The verbs of the command line, in the order of its help."""

from anchored.cli.model_verbs import MODEL_VERBS
from anchored.cli.parser import Verb
from anchored.cli.study_verbs import STUDY_VERBS

VERBS: dict[str, Verb] = STUDY_VERBS | MODEL_VERBS
