"""How far a worker reads ahead of what it has handed on.

Rows are cut into small slices, each slice is one request, and many requests are outstanding, so the engine never waits
at the edge of a batch. The window starts small, so `limit(5)` computes hundreds of rows and not ten thousand; it
doubles each time a whole window has been consumed; bytes bound it, because what waits is memory of the worker.

Pure bookkeeping: no clock, no thread, no row is touched.
"""

FIRST_ROWS = 256
MOST_ROWS = 8192
MOST_BYTES = 64 << 20
SMALLEST_SLICE = 64  # a quarter of the first window: its first results are on their way while the rest is computed
LARGEST_SLICE = 256


class Window:
    """Counts rows and bytes between `take` (a request is made) and `give` (its result is handed on).

    Always: rows <= limit, and limit <= FIRST_ROWS until FIRST_ROWS rows were given back.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.limit = FIRST_ROWS
        self.rows = 0
        self.bytes = 0
        self._most_bytes = most_bytes
        self._consumed = 0

    def room(self) -> int:
        """Rows the next slice may have; 0: hand on a result first. A slice is always allowed when nothing is out."""
        if self.rows >= self.limit or (self.rows and self.bytes >= self._most_bytes):
            return 0
        wanted = min(LARGEST_SLICE, max(SMALLEST_SLICE, self.limit // 4))
        return min(wanted, self.limit - self.rows)

    def take(self, rows: int, size: int) -> None:
        self.rows += rows
        self.bytes += size

    def give(self, rows: int, size: int) -> None:
        self.rows -= rows
        self.bytes -= size
        self._consumed += rows
        if self._consumed >= self.limit:
            self._consumed = 0
            self.limit = min(2 * self.limit, MOST_ROWS)
