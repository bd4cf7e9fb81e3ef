"""The bugs that mutants.py plants in the CUDA kernels: one change of one line or two in one file each."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Mutant:
    name: str
    build: str  # the one that notices
    file: str
    old: str
    new: str
    dtype: torch.dtype = torch.bfloat16  # whose kernels are compiled with it, where it is the adapter's

    @property
    def source(self) -> str:
        """The only file that is compiled with it."""
        if self.file.startswith(("mix", "route.", "weighted_average")):
            return f"{self.file.partition('.')[0]}.cu"
        name = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[self.dtype]
        return f"routed_adapter_{name}.cu"


BARRIER = "    __syncthreads();  // step s "
MUTANTS = (
    Mutant("shrink: no barrier", "race", "shrink.cuh", BARRIER, "    // step s "),
    Mutant("expand: no barrier", "race", "expand.cuh", BARRIER, "    // step s "),
    Mutant("outer: no barrier", "race", "outer.cuh", BARRIER, "    // step s "),
    Mutant("shrink: barrier left out by one warp", "plain", "shrink.cuh", BARRIER, f"    if (warp != 3){BARRIER}"),
    Mutant("shrink: waits for one group less", "plain", "shrink.cuh", "wait<S::kStages - 2>", "wait<S::kStages - 1>"),
    Mutant("outer: waits for one group less", "plain", "outer.cuh", "wait<S::kStages - 2>", "wait<S::kStages - 1>"),
    Mutant(
        "shrink: fills a slot that others still read",
        "race",
        "shrink.cuh",
        f"{BARRIER}has landed for everybody, and nobody reads the slot that is filled next\n    load_next();",
        "    load_next();\n    __syncthreads();",
    ),
    Mutant("expand: no __syncwarp before the lines are written", "race", "expand.cuh", "    __syncwarp();\n", ""),
    Mutant(
        "outer: next t overwrites the one in use",
        "race",
        "outer.cuh",
        "if (more) store_z(slot_z);",
        "if (more) store_z(slot_z ^ 1);",
    ),
    Mutant("tiles: rows not bounded", "address", "tiles.cuh", "row < valid ? 16 : 0", "valid ? 16 : 0"),
    Mutant("tiles: columns not bounded", "plain", "tiles.cuh", "valid = col < cols ? rows : 0", "valid = rows"),
    Mutant("pad: what follows a row instead of zeros", "address", "pad.cuh", "col + k < e.width ?", "true ?"),
    Mutant("pad: rows of nobody's segment only", "plain", "pad.cuh", "e.rows[g < p.segments ? g : 0] == u", "false"),
    Mutant("tiles: pitch without alignment", "plain", "tiles.cuh", "kPad = kVector<T>;", "kPad = kVector<T> / 2;"),
    Mutant("shrink: tokens not bounded", "address", "shrink.cuh", "if (token < tile.tokens)", "if (true)"),
    Mutant("shrink: ranks not bounded", "plain", "shrink.cuh", "v.y, ranks - r,", "v.y, 2,"),
    Mutant("shrink: every range adds the bias", "plain", "shrink.cuh", "p.bias && blockIdx.y == 0", "p.bias"),
    Mutant(
        "shrink: no barrier before a short tile's sums go where A was",
        "race",
        "shrink.cuh",
        "    __syncthreads();  // nobody reads A anymore",
        "",
    ),
    Mutant(
        "shrink: no barrier after a short tile's sums",
        "race",
        "shrink.cuh",
        "    __syncthreads();  // the warps' sums",
        "    // the warps' sums",
    ),
    Mutant("shrink: a short tile's last warp left out", "plain", "shrink.cuh", "w < 4; ++w", "w < 3; ++w"),
    Mutant(
        "shrink: a short tile's warps take the same columns",
        "plain",
        "shrink.cuh",
        "S::kShort ? S::kWarpStep : 16",
        "S::kShort ? 0 : 16",
    ),
    Mutant(
        "expand: a short tile's warps take the same columns",
        "plain",
        "expand.cuh",
        "own_column = S::kShort ? warp * S::kWarpStep : 0",
        "own_column = 0",
    ),
    Mutant(
        "expand: bias of a short tile's first columns",
        "plain",
        "expand.cuh",
        "first_column + column + own_column + c",
        "first_column + column + c",
    ),
    Mutant(
        "expand: z of a short tile beyond its tokens",
        "plain",
        "expand.cuh",
        "        if (kFours % S::kThreads != 0 && q >= kFours) break;\n",
        "",
    ),
    Mutant(
        "launch: as few blocks for short tiles as for long ones",
        "plain",
        "routed_adapter.cuh",
        "unsigned(max_tiles(segments_a, S::kTokens))",
        "unsigned(max_tiles(segments_a, kLongTile))",
    ),
    Mutant(
        "expand: tokens not bounded",
        "address",
        "expand.cuh",
        "valid = c < left ? tokens : 0",
        "valid = c < left ? 16 : 0",
    ),
    Mutant("expand: sums not cleared", "plain", "expand.cuh", "sums[n][2 * half] = sums[n][2 * half + 1] = 0.0f;", ""),
    Mutant("expand: the last range of z is left out", "plain", "expand.cuh", "k < p.n_parts", "k + 1 < p.n_parts"),
    Mutant(
        "expand: every block of columns writes z",
        "race",
        "expand.cuh",
        "if (p.whole_z && blockIdx.y == 0)\n          store_four",
        "if (p.whole_z)\n          store_four",
    ),
    Mutant("expand: scale forgotten", "plain", "expand.cuh", "value.y + p.scale * sums", "value.y + sums"),
    Mutant(
        "expand: z of absent tokens read",
        "address",
        "expand.cuh",
        "token < tile.tokens ? p.ranks - r : 0",
        "p.ranks - r",
    ),
    Mutant("expand: bias once a launch", "plain", "routed_adapter.cuh", "    p.bias = nullptr;\n", ""),
    Mutant(
        "given: forgotten",
        "plain",
        "routed_adapter.cuh",
        "p.writes_y ? p.base : p.given ? p.given : p.y",
        "p.writes_y ? p.base : p.y",
    ),
    Mutant(
        "given: forgotten by the gradient",
        "plain",
        "routed_adapter.cuh",
        "p.accumulate ? p.given ? p.given : p.dx : nullptr",
        "p.accumulate ? p.dx : nullptr",
    ),
    Mutant("given: added to by every launch again", "plain", "routed_adapter.cuh", "    p.base = p.y;\n", ""),
    Mutant("given: added twice", "plain", "expand.cuh", "value.x += given.x;", "value.x += 2 * given.x;"),
    Mutant(
        "given: of the first columns for every block",
        "plain",
        "expand.cuh",
        "static_cast<const T*>(p.base) + size_t(tile.begin) * p.columns + first_column",
        "static_cast<const T*>(p.base) + size_t(tile.begin) * p.columns",
    ),
    Mutant(
        "given: of the first tokens for every tile",
        "plain",
        "expand.cuh",
        "static_cast<const T*>(p.base) + size_t(tile.begin) * p.columns + first_column",
        "static_cast<const T*>(p.base) + first_column",
    ),
    Mutant(
        "given: past the last token",
        "address",
        "expand.cuh",
        "p.columns, tile.tokens, columns_left - load_column,",
        "p.columns, S::kTokens, columns_left - load_column,",
    ),
    Mutant("given: left out where there is no adapter", "plain", "expand.cuh", "given != y && c < columns", "false"),
    Mutant(
        "given: not looked at whether it is aligned",
        "address",
        "routed_adapter.cuh",
        "(p.writes_y || is_aligned(base))",
        "true",
    ),
    Mutant(
        "given: not looked at whether the gradient is aligned",
        "address",
        "routed_adapter.cuh",
        "sizeof(T)) && is_aligned(given)",
        "sizeof(T))",
    ),
    Mutant(
        "given: every block of columns writes all of them",
        "race",
        "expand.cuh",
        "given != y && c < columns; c += S::kThreads)",
        "given != y && c < p.columns - first_column; c += S::kThreads)",
    ),
    Mutant(
        "group: a layer's z begins as if it were alone",
        "plain",
        "expand.cuh",
        "at = size_t(tile.begin) * p.z_stride + p.first_rank",
        "at = size_t(tile.begin) * p.rank + p.first_rank",
    ),
    Mutant(
        "group: rows of z as far apart as one layer's",
        "plain",
        "expand.cuh",
        "p.z + at + size_t(token) * p.z_stride + r",
        "p.z + at + size_t(token) * p.rank + r",
    ),
    Mutant(
        "group: parts of z as far apart as one layer's",
        "plain",
        "expand.cuh",
        "part = size_t(p.segments.n_tokens) * p.z_stride",
        "part = size_t(p.segments.n_tokens) * p.rank",
    ),
    Mutant(
        "group: z is kept as if the layer were alone",
        "plain",
        "expand.cuh",
        "p.whole_z + at + size_t(token) * p.z_stride + r",
        "p.whole_z + at + size_t(token) * p.rank + r",
    ),
    Mutant(
        "group: rows of z too far apart",
        "address",
        "expand.cuh",
        "p.z + at + size_t(token) * p.z_stride + r",
        "p.z + at + size_t(token) * (p.z_stride + 4) + r",
    ),
    Mutant(
        "group: every layer reads the first one's z",
        "plain",
        "routed_adapter.cuh",
        "parts ? parts + p.z_first : nullptr",
        "parts",
    ),
    Mutant(
        "group: every layer keeps its z as the first one's", "plain", "routed_adapter.cuh", "p.z + p.z_first;", "p.z;"
    ),
    Mutant(
        "group: z of the first layer only",
        "plain",
        "routed_adapter.cuh",
        "rank = int(z_rank(p)), n_in",
        "rank = int(p.rank), n_in",
    ),
    Mutant(
        "group: scratch for the parts of one layer",
        "address",
        "routed_adapter.cuh",
        "plan.ranges * p.routing.n_tokens * z_rank(p)",
        "plan.ranges * p.routing.n_tokens * p.rank",
    ),
    Mutant(
        "group: fours of z that are not aligned",
        "address",
        "routed_adapter.cuh",
        "are_fours(z, z_stride) && are_fours(from, z_stride)",
        "are_fours(z, rank) && are_fours(from, rank)",
    ),
    Mutant(
        "group: fours of the kept z that are not aligned",
        "address",
        "routed_adapter.cuh",
        "are_fours(p.z, stride())",
        "are_fours(p.z, p.rank)",
    ),
    Mutant(
        "group: the gradient of B reads z as if the layer were alone",
        "plain",
        "routed_adapter.cuh",
        "int(stride())};",
        "int(p.rank)};",
    ),
    Mutant(
        "group: dz as if the layer were alone",
        "plain",
        "routed_adapter.cuh",
        "int(p.rank), int(stride())},",
        "int(p.rank), int(p.rank)},",
    ),
    Mutant(
        "group: dz is brought to its place from within it",
        "race",
        "routed_adapter.cuh",
        "plan.groups > 1 || stride() != p.rank ?",
        "plan.groups > 1 ?",
    ),
    Mutant(
        "group: dz past the last layer's",
        "address",
        "reduce.cuh",
        "i / p.rank * p.stride + i % p.rank",
        "i / p.rank * p.stride + i % p.rank + (p.stride - p.rank)",
    ),
    Mutant("expand: later launches overwrite", "plain", "routed_adapter.cuh", "    accumulate = true;\n", ""),
    Mutant("outer: z of absent tokens read", "address", "outer.cuh", "present ? ranks - r : 0", "ranks - r"),
    Mutant(
        "outer: both halves of the rank alike",
        "plain",
        "outer.cuh",
        "first ? b[1].pair[h] : b[0].pair[h]",
        "b[0].pair[h]",
    ),
    Mutant(
        "outer: groups of columns share dz",
        "plain",
        "outer.cuh",
        "p.inner + (size_t(blockIdx.y) *",
        "p.inner + (size_t(0) *",
    ),
    Mutant("reduce: one part left out", "plain", "reduce.cuh", "k < p.n_parts", "k < p.n_parts - 1"),
    Mutant("reduce: first of a row's chunks only", "plain", "reduce.cuh", "k < n; ++k", "k < 1; ++k"),
    Mutant(
        "outer: dA not transposed",
        "plain",
        "outer.cuh",
        "parts[size_t(c) * p.rank + r]",
        "parts[size_t(r) * p.columns + c]",
    ),
    Mutant(
        "matrix: B's fragments swapped",
        "plain",
        "matrix.cuh",
        "b[i / 2].pair[i % 2] = r[i]",
        "b[i % 2].pair[i / 2] = r[i]",
    ),
    Mutant(
        "matrix: A's halves swapped",
        "plain",
        "matrix.cuh",
        "a.pair[i / 2][i % 2] = r[i]",
        "a.pair[i % 2][i / 2] = r[i]",
    ),
    Mutant(
        "matrix: small tf32 terms lost",
        "plain",
        "matrix.cuh",
        "    mma_16x8x8_tf32(d, a_small, b_large);\n",
        "",
        torch.float32,
    ),
    Mutant(
        "matrix: float32 summed by the tensor cores to the end",
        "plain",
        "matrix.cuh",
        "mma_16x8x8_tf32(d, a_large, b_large)",
        "mma_16x8x8_tf32(c, a_large, b_large)",
        torch.float32,
    ),
    Mutant(
        "segments: scan without its lane guard", "plain", "segments.cuh", "if (lane >= step) v += below;", "v += below;"
    ),
    Mutant("segments: tiles overlap", "plain", "segments.cuh", "+ within * size;", "+ within * (size - 1);"),
    Mutant(
        "segments: no surplus tiles",
        "plain",
        "segments.cuh",
        "most = s.n_tokens / size + s.count;",
        "most = (s.n_tokens + size - 1) / size;",
    ),
    Mutant(
        "launch: half of the shared memory",
        "plain",
        "routed_adapter.cuh",
        "S::kShared, stream",
        "S::kShared / 2, stream",
    ),
    Mutant(
        "launch: 100 KB too much shared memory",
        "plain",
        "routed_adapter.cuh",
        "S::kShared, stream",
        "S::kShared + 102400, stream",
    ),
    Mutant(
        "segments: rows are counted before all counts are cleared",
        "race",
        "segments.cuh",
        "counts[r] = 0;\n  __syncthreads();",
        "counts[r] = 0;",
    ),
    Mutant(
        "segments: chunks are sought before all rows are counted",
        "race",
        "segments.cuh",
        "end - begin);\n  }\n  __syncthreads();",
        "end - begin);\n  }",
    ),
    Mutant(
        "segments: a row's tokens are read before they are written",
        "race",
        "segments.cuh",
        "token + i;\n    }\n  }\n  __syncthreads();",
        "token + i;\n    }\n  }",
    ),
    Mutant(
        "segments: every chunk of a row is its first",
        "plain",
        "segments.cuh",
        "i - first] = token + i",
        "i - first] = token + i - first",
    ),
    Mutant("segments: row -1 has its chunks with the bad ones", "plain", "segments.cuh", "(row == -1 ? 0 : 1)", "1"),
    Mutant(
        "segments: no chunk goes past 32 segments",
        "plain",
        "segments.cuh",
        "before = __shfl_sync(~0u, through, 31);\n    uint32_t mine",
        "before = 0;\n    uint32_t mine",
    ),
    Mutant(
        "outer: fewer chunks than rows may have",
        "plain",
        "routed_adapter.cuh",
        "n / of_a_row + std::min(segments.n_rows + 2, segments.count)",
        "n / of_a_row + 1",
    ),
    Mutant(
        "outer: dz of a row's chunks where the first tokens are",
        "plain",
        "outer.cuh",
        "store_two(inner + token_at(at) * p.rank",
        "store_two(inner + size_t(at) * p.rank",
    ),
    Mutant(
        "tiles: rows anywhere, one after the other",
        "plain",
        "tiles.cuh",
        "size_t(rows_of[first + i]) * stride",
        "size_t(rows_of[0] + first + i) * stride",
    ),
    Mutant(
        "tiles: rows anywhere, not bounded",
        "address",
        "tiles.cuh",
        "present = first + i < valid",
        "present = valid > 0",
    ),
    Mutant(
        "segments: neighbours of one row join whatever it is", "plain", "segments.cuh", "s.rows[g + 1] != row", "false"
    ),
    Mutant(
        "segments: a run is its last segment",
        "plain",
        "segments.cuh",
        "begin = mine ? found : run_begin;",
        "begin = first;",
    ),
    Mutant(
        "segments: no run goes past 32 segments",
        "plain",
        "segments.cuh",
        "begin = mine ? found : run_begin;",
        "begin = mine ? found : first;",
    ),
    Mutant(
        "segments: row -1 is a bad row",
        "plain",
        "segments.cuh",
        "row == kNoAdapter ? kNoAdapter : kNoSuchRow",
        "kNoSuchRow",
    ),
    Mutant(
        "segments: the first factor for row -1",
        "plain",
        "segments.cuh",
        "row == kNoAdapter ? kNoAdapter : kNoSuchRow",
        "0",
    ),
    Mutant(
        "reduce: rows of chunks past the last",
        "address",
        "reduce.cuh",
        "base + lane < p.n_parts && ",
        "",
    ),
    Mutant("outer: the next B is not waited for", "plain", "outer.cuh", "          cp_async_wait<1>();", "         "),
    Mutant(
        "outer: no barrier before the next B is read",
        "race",
        "outer.cuh",
        "asked for after B\n          __syncthreads();",
        "asked for after B\n",
    ),
    Mutant("outer: dz of earlier column blocks is lost", "plain", "outer.cuh", "if (!first_block) {", "if (false) {"),
    Mutant(
        "outer: sums of the column block before",
        "plain",
        "outer.cuh",
        "Accumulator sums[S::kRankTiles][S::kColumnTiles] = {},",
        "static thread_local Accumulator sums[S::kRankTiles][S::kColumnTiles]; [[maybe_unused]] Accumulator unused = {},",
    ),
    *(
        Mutant(
            f"{file}: token offset in 32 bits",
            "address",
            f"{file}.cuh",
            f"size_t({token}) * p.{width}",
            f"size_t({token} * p.{width})",
        )
        for file, token, width in (
            ("shrink", "tile.begin", "in_features"),
            ("expand", "tile.begin", "columns"),
            ("outer", "first_token", "columns"),
        )
    ),
    Mutant("activation: tanh form of GELU's slope", "plain", "activation.cuh", "+ z * 0.39894228f", "+ z * 0.4f"),
    Mutant(
        "mix: weights of absent rows read",
        "address",
        "mix.cuh",
        "row0 + j < m.rows ? row0 + j : m.rows - 1",
        "row0 + j",
    ),
    Mutant("mix: rows are not filled up", "plain", "mix.cuh", "past <= m.zeros", "past < 0"),
    Mutant(
        "mix: absent rows written", "address", "mix.cuh", "if (row0 + j < m.rows) store_mixed", "if (true) store_mixed"
    ),
    Mutant(
        "mix: fours of tensors that are not aligned to them",
        "address",
        "mix.cu",
        "return is_aligned(p, 0, dtype == Dtype::kFp32 ? 16 : 8);",
        "return true;",
    ),
    Mutant("mix: fours that go past a row", "plain", "mix.cu", "i.q % 4 == 0 && stride(i) % 4 == 0", "true"),
    Mutant("mix: one lane's dots of four", "plain", "mix.cuh", "step < 32; step *= 2", "step < 16; step *= 2"),
    Mutant("mix: half a warp's dots", "plain", "mix.cuh", "step = 16; step; step /= 2", "step = 8; step; step /= 2"),
    Mutant("route: every row of a task but its first", "plain", "route.cuh", "found &= found - 1", "found = 0"),
    Mutant("route: rows past the last", "address", "route.cuh", "first + lane < p.rows && ", ""),
    Mutant(
        "average: the tail as a whole vector", "address", "weighted_average.cuh", "p.vectors && n == kEach", "p.vectors"
    ),
    Mutant("average: long lists start again", "plain", "weighted_average.cu", "first > 0", "false"),
)
