"""The first lines of a program that runs as if this package were not installed."""

WITHOUT_PACKAGE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "pdiff_hub":
            raise ModuleNotFoundError("blocked", name="pdiff_hub")
sys.meta_path.insert(0, Blocked())
"""
