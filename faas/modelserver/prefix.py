"""
The prefix cache: which sequence holds which tokens, so that prompts with the same beginning share KV cells.

A sequence is *live* while a generation uses it; afterwards it stays behind, *idle*, until its cells or its number
are wanted: then the one that was used least recently goes first.

Attention sums up in the order of cells, so a generation rounds as it does alone only if its cells lie in the order of
its tokens. Cells are filled from the bottom up, and that order holds as long as no cell is freed below one that is in
use. Room is therefore made in quiet moments, by ``tidy``, which frees from the top, and where there are none by moving
all that is live to the bottom, which ``restack`` notes; ``coldest`` is for want of both.
"""

from __future__ import annotations

from array import array

TOKEN_TYPE = "i"
_WIDTH = array(TOKEN_TYPE).itemsize
MIN_TOKENS_WORTH_KEEPING = 32
"""Fewer are computed again sooner than they are managed."""


class Holding:
    """
    One sequence and the tokens whose cells it holds; lives from ``PrefixCache.open`` until it is evicted.

    ``n_shared`` of its cells belong to *origin*, the others to it (for counting: to the library all owners are equal).
    """

    __slots__ = ("began_at", "ended_at", "live", "n_shared", "origin", "sequence", "shared_at", "tokens", "used_at")

    def __init__(self, sequence: int, began_at: int) -> None:
        """Args: *began_at* is the number of cells filled so far: none of its own lies below it."""
        self.sequence = sequence
        self.began_at = self.ended_at = began_at
        self.tokens = array(TOKEN_TYPE)
        self.live = True
        self.used_at = 0
        self.shared_at = 0
        self.origin: Holding | None = None
        self.n_shared = 0

    @property
    def n_owned(self) -> int:
        """How many cells would be counted twice without the sharing."""
        return len(self.tokens) - self.n_shared


class PrefixCache:
    """
    Every sequence of one model; lives as long as the loaded model.

    Knows nothing of the library: the caller shares and trims what this class decides.
    Thread: the owner's.
    """

    def __init__(self, n_seqs: int) -> None:
        self._n_seqs = n_seqs
        self._free = list(range(n_seqs - 1, -1, -1))
        self._holdings: dict[int, Holding] = {}
        self._clock = 0
        self._tidied_at = 0
        self._filled = 0
        self._has_holes = False

    @property
    def filled(self) -> int:
        """Up to where cells have been filled since the bottom was last free; with holes no more than an estimate."""
        return self._filled

    @property
    def n_free(self) -> int:
        """How many sequences nobody uses."""
        return len(self._free)

    @property
    def cells_used(self) -> int:
        """How many cells hold a token, shared ones counted once."""
        return sum(holding.n_owned for holding in self._holdings.values())

    @property
    def n_idle(self) -> int:
        """How many sequences could be evicted."""
        return sum(not holding.live for holding in self._holdings.values())

    @property
    def has_room(self) -> bool:
        """Tell whether ``open`` would find a sequence, if need be by evicting one."""
        return bool(self._free) or self.n_idle > 0

    @property
    def has_free(self) -> bool:
        """Tell whether ``open`` would find a sequence as it is."""
        return bool(self._free)

    def match(self, tokens: array[int], *, but: Holding | None = None) -> tuple[Holding | None, int]:
        """Return who (*but* one) holds the longest beginning of *tokens*, and its length."""
        best, best_n = None, 0
        for holding in self._holdings.values():
            if holding is not but and (n := longer_beginning(tokens, holding.tokens, best_n)) > best_n:
                best, best_n = holding, n
        return best, best_n

    def open(self) -> Holding:
        """Return a live holding without tokens; there must be a free sequence."""
        holding = Holding(self._free.pop(), self._filled)
        self._holdings[holding.sequence] = holding
        self.touch(holding)
        return holding

    def adopt(self, holding: Holding, origin: Holding, n_shared: int) -> None:
        """Note that *holding*, still empty, shares the first *n_shared* tokens of *origin*."""
        holding.tokens = origin.tokens[:n_shared]
        holding.n_shared = n_shared
        self.touch(origin)
        # Cells that *origin* itself shares with its own origin have the same owner here.
        while origin.origin is not None and n_shared <= origin.n_shared:
            origin = origin.origin
        holding.origin = origin
        if n_shared >= MIN_TOKENS_WORTH_KEEPING:
            owner: Holding | None = origin
            while owner is not None:
                owner.shared_at = self._clock
                owner = owner.origin

    def fill(self, holding: Holding, tokens: array[int]) -> None:
        """Note that *holding* has cells of its own for the next *tokens*."""
        holding.tokens.extend(tokens)
        self._filled += len(tokens)
        holding.ended_at = self._filled

    def cut(self, holding: Holding, n_tokens: int) -> None:
        """Note that only the first *n_tokens* of *holding*, which was filled last, are kept."""
        n_cut = len(holding.tokens) - n_tokens
        del holding.tokens[n_tokens:]
        holding.ended_at -= n_cut
        self._filled -= n_cut

    def touch(self, holding: Holding) -> None:
        """Note that *holding* is in use."""
        self._clock += 1
        holding.used_at = self._clock

    def retire(self, holding: Holding) -> bool:
        """
        Leave *holding* behind, idle; return whether it was forgotten at once, because it holds nothing.

        Idle ones whose tokens it repeats are now of no use, yet stay until somebody wants their cells, first of all.
        """
        holding.live = False
        self.touch(holding)
        if not holding.tokens:
            self.forget(holding)
            return True
        mine = holding.tokens.tobytes()
        for other in self._holdings.values():
            if other is not holding and not other.live and mine.startswith(other.tokens.tobytes()):
                other.used_at = 0
        return False

    def tidy(self, keep: float) -> list[Holding]:
        """
        Forget the newest, so that at most *keep* cells and half of the sequences are left, without holes below them.

        None may be live. What nobody has shared since the last time is kept only below something that was; where
        nothing has happened since then, all stays. Return those that are forgotten.
        """
        if self._clock == self._tidied_at and not self._has_holes:
            return []
        in_order = sorted(self._holdings.values(), key=lambda holding: holding.began_at)
        n_kept = top = filled = 0
        is_wanted = False
        for n, holding in enumerate([] if self._has_holes else in_order):
            if holding.began_at >= top and is_wanted:
                n_kept, filled, is_wanted = n, top, False  # a cut here leaves nothing above it in use
            if holding.ended_at > keep or n >= self._n_seqs // 2:
                break
            top = max(top, holding.ended_at)
            is_wanted = is_wanted or holding.shared_at > self._tidied_at
        else:
            if is_wanted:
                n_kept, filled = len(in_order), top
        gone = in_order[n_kept:]
        for holding in gone:
            self.forget(holding)
        self._filled, self._has_holes, self._tidied_at = filled, False, self._clock
        return gone

    @property
    def idle(self) -> list[Holding]:
        """Those that no generation uses."""
        return [holding for holding in self._holdings.values() if not holding.live]

    def restack(self) -> list[Holding]:
        """
        Note that the live ones are moved to the bottom, one upon the other, sharing nothing; return them in that order.

        None may be idle.
        """
        in_order = sorted(self._holdings.values(), key=lambda holding: holding.began_at)
        self._filled, self._has_holes = 0, False
        for holding in in_order:
            holding.origin, holding.n_shared = None, 0
            holding.began_at = self._filled
            self._filled += len(holding.tokens)
            holding.ended_at = self._filled
        return in_order

    def coldest(self, *, sparing: Holding | None = None) -> Holding | None:
        """Return the idle holding that was used least recently, *sparing* one that is about to be shared."""
        idle = (holding for holding in self.idle if holding is not sparing)
        return min(idle, key=lambda holding: holding.used_at, default=None)

    def forget(self, holding: Holding) -> None:
        """Give back the sequence of *holding*; what others share of it is counted as theirs from now on."""
        if holding.ended_at > holding.began_at:
            self._has_holes = True
        del self._holdings[holding.sequence]
        self._free.append(holding.sequence)
        heirs = [other for other in self._holdings.values() if other.origin is holding]
        if not heirs:
            return
        heir = max(heirs, key=lambda other: other.n_shared)
        for other in heirs:
            other.origin = heir
        n_of_grand = min(heir.n_shared, holding.n_shared)
        heir.origin, heir.n_shared = (holding.origin, n_of_grand) if holding.origin is not None else (None, 0)


class SavedPrefixes:
    """
    Copies of ended sequences' cells in ordinary memory, least recently used out first; lives as long as the model.

    Thread: the owner's.
    """

    def __init__(self, max_bytes: int) -> None:
        self.n_bytes = 0
        self.max_bytes = max_bytes
        self._saved: dict[bytes, tuple[array[int], memoryview]] = {}  # by the tokens; the oldest first

    def __len__(self) -> int:
        return len(self._saved)

    def match(self, tokens: array[int]) -> tuple[memoryview | None, array[int], int]:
        """Return what holds the longest beginning of *tokens*, all its tokens, and how many of them fit."""
        best_key, best_n = b"", 0
        for key, (held, _) in self._saved.items():
            if (n := longer_beginning(tokens, held, best_n)) > best_n:
                best_key, best_n = key, n
        if not best_n:
            return None, array(TOKEN_TYPE), 0
        held, state = self._saved[best_key] = self._saved.pop(best_key)
        return state, held, best_n

    def adds(self, tokens: array[int], n_held: int) -> bool:
        """Tell whether *tokens*, of which *n_held* can be had without, are worth saving."""
        n_known = n_held
        for held, _ in self._saved.values():
            n_known = longer_beginning(tokens, held, n_known)
        return self.max_bytes > 0 and len(tokens) - n_known >= max(MIN_TOKENS_WORTH_KEEPING, len(tokens) // 4)

    def make_room(self, tokens: array[int], n_bytes: int) -> None:
        """Drop what *tokens* repeat, and as many as must go for *n_bytes*: before a copy is made, so that it fits."""
        key = tokens.tobytes()
        for repeated in [other for other in self._saved if key.startswith(other)]:
            self._drop(repeated)
        while self._saved and self.n_bytes + n_bytes > self.max_bytes:
            self._drop(next(iter(self._saved)))

    def put(self, tokens: array[int], state: memoryview) -> None:
        """Keep *state*, in the place of what it repeats; one over the maximum is not kept."""
        if not 0 < len(state) <= self.max_bytes:
            return
        self.make_room(tokens, len(state))
        self._saved[tokens.tobytes()] = (array(TOKEN_TYPE, tokens), state)
        self.n_bytes += len(state)

    def _drop(self, key: bytes) -> None:
        self.n_bytes -= len(self._saved.pop(key)[1])


def longer_beginning(tokens: array[int], held: array[int], n: int) -> int:
    """Return how many first tokens are the same if those are more than *n*, else *n*; most are told by one look."""
    if min(len(tokens), len(held)) <= n or tokens[n] != held[n]:
        return n
    return max(n, common_length(tokens, held))


def common_length(one: array[int], other: array[int]) -> int:
    """Return how many first tokens are the same (by halving: each test is one memory comparison)."""
    limit = min(len(one), len(other))
    a, b = one[:limit].tobytes(), other[:limit].tobytes()
    if a == b:
        return limit
    low, high = 0, limit  # the first *low* are the same, the first *high* are not
    while high - low > 1:
        middle = (low + high) // 2
        if a[low * _WIDTH : middle * _WIDTH] == b[low * _WIDTH : middle * _WIDTH]:
            low = middle
        else:
            high = middle
    return low
