"""The first lines of programs that run as if packages that are installed here were not."""


def without(*packages: str) -> str:
    """Lines after which none of these packages can be found."""
    return f"""
import sys
class Others:
    def __init__(self, finders):
        self.finders = finders
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {packages!r}:
            return None
        found = (finder.find_spec(name, path, target) for finder in self.finders)
        return next((spec for spec in found if spec is not None), None)
    def find_distributions(self, *context):
        for finder in self.finders:
            yield from getattr(finder, "find_distributions", lambda *_: ())(*context)
sys.meta_path[:] = [Others([finder for finder in sys.meta_path if hasattr(finder, "find_spec")])]
"""


WITHOUT_PACKAGE = without("pdiff_hub")
