"""A synthetic driving world that NAVSIM reads like a real data set.

``python -m navsim_recogdrive.world OUTPUT`` makes one. From a seed follow four small towns (:mod:`.town_plan`), the
traffic, pedestrians and lights in them (:mod:`.traffic`), the drives of an expert (:mod:`.simulate`), what the ego's
cameras see (:mod:`.render`), and the files: OpenScene logs (:mod:`.openscene`) and nuPlan map packages
(:mod:`.nuplan_map`). Where NAVSIM is absent, :mod:`.scenes` reads the logs back and :mod:`.scores` scores plans.

The simulation knows nothing of the writers, and nothing here needs torch, NAVSIM or nuPlan.
"""
