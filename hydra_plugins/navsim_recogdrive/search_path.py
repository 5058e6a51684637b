"""Puts this package's configs on Hydra's search path, so that ``agent=recogdrive_2b`` resolves in every runner.

Hydra imports this module at every start of every Hydra program in the environment: nothing but Hydra is imported here.
"""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class NavsimReCogDriveSearchPathPlugin(SearchPathPlugin):
    """Appends ``pkg://navsim_recogdrive.configs``, after the folder of the program that is run.

    A config of the same name in that folder wins. What the program itself puts on the path later (NAVSIM's runners add
    their ``common`` configs in their own ``hydra.searchpath``) comes after ours: no file here has a name of NAVSIM's.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append this package's config folder to ``search_path``."""
        search_path.append(provider="navsim-recogdrive", path="pkg://navsim_recogdrive.configs")
