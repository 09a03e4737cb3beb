"""The verbs of the command line, in the order of its help."""

from anchored.cli import model_verbs, study_verbs
from anchored.cli.parser import Verb

VERBS: dict[str, Verb] = {
    verb.__name__: verb
    for verb in (
        study_verbs.study,
        study_verbs.train,
        study_verbs.evaluate,
        study_verbs.report,
        study_verbs.data,
        study_verbs.doctor,
        model_verbs.calibrate,
        model_verbs.predict,
        model_verbs.corrupt,
        model_verbs.convert,
        model_verbs.export,
    )
}
