"""What runs and shows. Imported first of our packages by every command, so it makes sure that the others are ours, too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from actors.import_path import put_own_packages_first

del sys.path[0]
put_own_packages_first()
