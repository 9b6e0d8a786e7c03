"""python -m firesteel.manager"""

import logging
import os

from .process import main

code = main()
logging.shutdown()
os._exit(code)  # a thread that the service left would keep the process
