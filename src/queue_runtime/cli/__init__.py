"""The command line ``queue-runtime``. Commands live in one module per group, imported when they are called.

Exit codes, the same for every command:

==== =====================================================================================
code meaning
==== =====================================================================================
0    everything asked for was done
1    a part was not done (messages refused, handlers cancelled by a drain), or something else failed
2    the command line, the configuration or a value is wrong; nothing was done
3    the queue does not exist, or the broker refuses the credentials
4    the broker cannot be reached or is busy: the same command may succeed later
130  interrupted by Ctrl-C
==== =====================================================================================
"""

from .root import main as main
from .root import root as root

__all__ = ["main", "root"]
