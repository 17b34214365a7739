"""python -m jaxbackprop: versions, devices, and whether everything holds here."""

import sys

from jaxbackprop.selfcheck import main

sys.exit(main())
