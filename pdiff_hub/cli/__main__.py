"""`python -m pdiff_hub.cli` is `pdiff`."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the current folder, which Python itself puts there
    from pdiff_hub.cli.start import main

    main()
