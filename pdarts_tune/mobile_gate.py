"""The mobile setting's limit on multiply-adds, kept before a training starts and not found out after it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from pdarts_tune.config import ConfigError, to_dict
from pdarts_tune.data import check_dataset
from pdarts_tune.eval_job import EvalJob, write_eval_row
from pdarts_tune.genotype import Genotype
from pdarts_tune.network_shape import check_madds
from pdarts_tune.plan import EvalTrial
from pdarts_tune.storage import Storage


def refuse_large(trials: Sequence[EvalTrial], folder: Storage) -> list[EvalTrial]:
    """Those of the trials whose networks the mobile setting allows; the others get a row that says why they were not trained.

    Genotypes that are given are refused before a study starts. Those that it finds or draws are known only here.
    """
    allowed = []
    for trial in trials:
        config = trial.config
        if config.stem != "imagenet":
            allowed.append(trial)
            continue
        info = check_dataset(
            config.data, config.train_images, config.test_images, config.image_size, skip_bad_images=config.skip_bad_images
        )
        genotype = Genotype.parse(trial.genotype)
        try:
            check_madds(genotype, config, info, f"genotype {genotype.genotype_id}")
            allowed.append(trial)
        except ConfigError as error:
            job = EvalJob(trial.trial_id, str(folder), trial.genotype, to_dict(config))
            write_eval_row(job, {"status": "failed", "failure": f"refused: {error}"}, "none", None, datetime.now(UTC), 1)
    return allowed
