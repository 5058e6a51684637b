"""Pictures: bird's-eye views, trajectories in the front camera's image, films of denoising and training.

:mod:`.scene_view` is what can be drawn of a scene, as plain arrays; :mod:`.bird_eye` and :mod:`.camera` draw it.
Nothing here needs NAVSIM: :mod:`.world_scenes` makes views of the synthetic world, ``agents/scene_views.py`` of
NAVSIM's scenes.
"""
