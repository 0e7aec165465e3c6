"""The two Triton kernels of :mod:`leanconv.nn.aw_triton`. Importing this needs triton."""

from __future__ import annotations

import triton
import triton.language as tl

# How the gain varies within a tile of the product: with the columns of the result, with what is summed, or with both.
COLUMNS, SUMMED, BOTH = 0, 1, 2


@triton.jit
def product(
    source,  # [N, groups * summed, source_height, source_width], channels last
    weight,
    gain,
    target,  # [N, groups * columns, target_height, target_width], channels last
    groups,
    columns,
    summed,
    source_height,
    source_width,
    target_height,
    target_width,
    weight_g,  # elements from one group, column, summed channel, row and column of the kernel to the next
    weight_n,
    weight_k,
    weight_i,
    weight_j,
    gain_s,  # the same of the gain, and from one sample to the next; 0 where it is constant
    gain_g,
    gain_n,
    gain_k,
    gain_i,
    gain_j,
    HEIGHT: tl.constexpr,  # of the kernel
    WIDTH: tl.constexpr,
    STRIDE_Y: tl.constexpr,
    STRIDE_X: tl.constexpr,
    PAD_Y: tl.constexpr,
    PAD_X: tl.constexpr,
    DILATION_Y: tl.constexpr,
    DILATION_X: tl.constexpr,
    TRANSPOSED: tl.constexpr,  # the gradient of the input: source and target change places
    STEP_Y: tl.constexpr,  # from one tap that a row of the target meets to the next; 1 unless TRANSPOSED
    STEP_X: tl.constexpr,
    MODE: tl.constexpr,
    BY_TAP: tl.constexpr,  # whether the gain differs from tap to tap
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,  # positions
    BLOCK_N: tl.constexpr,  # columns
    BLOCK_K: tl.constexpr,  # summed
):
    """One tile of the target: positions of one sample x columns of one group, summed over taps and source channels.

    With TRANSPOSED and a stride, the positions of a tile are those of one remainder modulo the stride, which all meet
    the same taps; the other taps are passed over.
    """
    SKIP_Y: tl.constexpr = STRIDE_Y if TRANSPOSED else 1
    SKIP_X: tl.constexpr = STRIDE_X if TRANSPOSED else 1
    rows = tl.cdiv(target_height, SKIP_Y)
    across = tl.cdiv(target_width, SKIP_X)
    tile = tl.program_id(0)
    n_tiles = tl.cdiv(columns, BLOCK_N)
    m_tiles = tl.cdiv(rows * across, BLOCK_M)
    n = (tile % n_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    tile = tile // n_tiles
    m = (tile % m_tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    tile = tile // m_tiles
    first_y = (tile // SKIP_X) % SKIP_Y
    first_x = tile % SKIP_X
    tile = tile // (SKIP_X * SKIP_Y)
    group = tile % groups
    sample = (tile // groups).to(tl.int64)

    y = (m // across) * SKIP_Y + first_y
    x = (m % across) * SKIP_X + first_x
    in_target = (y < target_height) & (x < target_width)
    in_columns = n < columns
    source += (sample * source_height * source_width * groups + group) * summed
    target += (sample * target_height * target_width * groups + group) * columns
    weight += group * weight_g + n[None, :] * weight_n
    gain += sample * gain_s + group * gain_g

    first_i = 0
    first_j = 0
    if TRANSPOSED:  # the first tap that these positions meet
        first_i = HEIGHT
        first_j = WIDTH
        for tap_y in tl.static_range(STRIDE_Y):
            meets = (first_y + PAD_Y + tap_y * DILATION_Y * (STRIDE_Y - 1)) % STRIDE_Y == 0
            first_i = tl.minimum(first_i, tl.where(meets, tap_y, HEIGHT))
        for tap_x in tl.static_range(STRIDE_X):
            meets = (first_x + PAD_X + tap_x * DILATION_X * (STRIDE_X - 1)) % STRIDE_X == 0
            first_j = tl.minimum(first_j, tl.where(meets, tap_x, WIDTH))
    count_i = tl.cdiv(HEIGHT - first_i, STEP_Y)
    count_j = tl.cdiv(WIDTH - first_j, STEP_X)
    k_blocks = tl.cdiv(summed, BLOCK_K)

    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    part = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(0, count_i * count_j * k_blocks):
        tap = step // k_blocks
        i = first_i + (tap // count_j) * STEP_Y
        j = first_j + (tap % count_j) * STEP_X
        k = (step % k_blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
        if TRANSPOSED:
            from_y = y + PAD_Y - i * DILATION_Y
            from_x = x + PAD_X - j * DILATION_X
            seen = in_target & (from_y >= 0) & (from_x >= 0)
            from_y = from_y // STRIDE_Y
            from_x = from_x // STRIDE_X
        else:
            from_y = y * STRIDE_Y - PAD_Y + i * DILATION_Y
            from_x = x * STRIDE_X - PAD_X + j * DILATION_X
            seen = in_target & (from_y >= 0) & (from_x >= 0)
        seen = seen & (from_y < source_height) & (from_x < source_width)
        in_summed = k < summed
        place = (from_y * source_width + from_x) * groups * summed
        a = tl.load(source + place[:, None] + k[None, :], mask=seen[:, None] & in_summed[None, :], other=0.0)
        chosen = weight + i * weight_i + j * weight_j + k[:, None] * weight_k
        inside = in_summed[:, None] & in_columns[None, :]
        b = tl.load(chosen, mask=inside, other=0.0)
        gates = gain + i * gain_i + j * gain_j
        if MODE == 0:
            part = tl.dot(a, b, part, input_precision=PRECISION)
            if BY_TAP and (step + 1) % k_blocks == 0:
                gate = tl.load(gates + n * gain_n, mask=in_columns, other=0.0).to(tl.float32)
                total += part * gate[None, :]
                part = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        elif MODE == 1:
            gate = tl.load(gates + k * gain_k, mask=in_summed, other=0.0).to(tl.float32)
            a = (a.to(tl.float32) * gate[None, :]).to(a.dtype)
            total = tl.dot(a, b, total, input_precision=PRECISION)
        else:
            gate = tl.load(gates + k[:, None] * gain_k + n[None, :] * gain_n, mask=inside, other=0.0)
            b = (b.to(tl.float32) * gate.to(tl.float32)).to(b.dtype)
            total = tl.dot(a, b, total, input_precision=PRECISION)
    if MODE == 0 and not BY_TAP:
        gate = tl.load(gain + n * gain_n, mask=in_columns, other=0.0).to(tl.float32)
        total = part * gate[None, :]

    place = (y * target_width + x) * groups * columns
    written = target + place[:, None] + n[None, :]
    tl.store(written, total.to(target.dtype.element_ty), mask=in_target[:, None] & in_columns[None, :])


@triton.jit
def weight_gradient(
    grad,  # of the result: [N, groups * outputs, grad_height, grad_width], channels last
    x,  # [N, groups * inputs, height, width], channels last
    weight,
    gain,
    weight_parts,  # [splits, groups, outputs, taps, inputs]
    gain_parts,  # [tiles summed into one, N, groups, taps, outputs or 1, inputs or 1]
    samples,
    samples_each,  # of a split
    groups,
    outputs,
    inputs,
    height,
    width,
    grad_height,
    grad_width,
    weight_g,  # elements from one group, output, input, row and column of the kernel to the next
    weight_o,
    weight_i,
    weight_y,
    weight_x,
    gain_s,
    gain_g,
    gain_o,
    gain_i,
    gain_y,
    gain_x,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE_Y: tl.constexpr,
    STRIDE_X: tl.constexpr,
    PAD_Y: tl.constexpr,
    PAD_X: tl.constexpr,
    DILATION_Y: tl.constexpr,
    DILATION_X: tl.constexpr,
    SUM_OUTPUTS: tl.constexpr,  # the gain is constant along the outputs
    SUM_INPUTS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_P: tl.constexpr,  # positions
):
    """One tile, outputs x inputs of one tap and group: for each sample of a split the gradient of its kernel, which is
    added, times the gain, to that of the weight, and, times the weight, is that of the gain."""
    tile = tl.program_id(0)
    i_tiles = tl.cdiv(inputs, BLOCK_I)
    o_tiles = tl.cdiv(outputs, BLOCK_O)
    i_tile = tile % i_tiles
    tile = tile // i_tiles
    o_tile = tile % o_tiles
    tile = tile // o_tiles
    tap = tile % (HEIGHT * WIDTH)
    tile = tile // (HEIGHT * WIDTH)
    group = tile % groups
    split = tile // groups
    tap_y = tap // WIDTH
    tap_x = tap % WIDTH

    o = o_tile * BLOCK_O + tl.arange(0, BLOCK_O)
    i = i_tile * BLOCK_I + tl.arange(0, BLOCK_I)
    in_outputs = o < outputs
    in_inputs = i < inputs
    inside = in_outputs[:, None] & in_inputs[None, :]
    weight += group * weight_g + tap_y * weight_y + tap_x * weight_x + o[:, None] * weight_o + i[None, :] * weight_i
    gain += group * gain_g + tap_y * gain_y + tap_x * gain_x
    GAIN_OUTPUTS = 1 if SUM_OUTPUTS else outputs
    GAIN_INPUTS = 1 if SUM_INPUTS else inputs
    gain_tile = (o_tile if SUM_OUTPUTS else 0) * (i_tiles if SUM_INPUTS else 1) + (i_tile if SUM_INPUTS else 0)

    positions = grad_height * grad_width
    p_blocks = tl.cdiv(positions, BLOCK_P)
    start = split * samples_each
    count = tl.minimum(samples_each, samples - start)
    total = tl.zeros((BLOCK_O, BLOCK_I), dtype=tl.float32)
    part = tl.zeros((BLOCK_O, BLOCK_I), dtype=tl.float32)
    for step in range(0, count * p_blocks):
        sample = (start + step // p_blocks).to(tl.int64)
        p = (step % p_blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
        in_grad = p < positions
        from_y = (p // grad_width) * STRIDE_Y - PAD_Y + tap_y * DILATION_Y
        from_x = (p % grad_width) * STRIDE_X - PAD_X + tap_x * DILATION_X
        seen = in_grad & (from_y >= 0) & (from_y < height) & (from_x >= 0) & (from_x < width)
        grad_of = grad + (sample * positions * groups + group) * outputs
        a = tl.load(
            grad_of + p[None, :] * groups * outputs + o[:, None],
            mask=in_outputs[:, None] & in_grad[None, :],
            other=0.0,
        )
        x_of = x + (sample * height * width * groups + group) * inputs
        place = (from_y * width + from_x) * groups * inputs
        b = tl.load(x_of + place[:, None] + i[None, :], mask=seen[:, None] & in_inputs[None, :], other=0.0)
        part = tl.dot(a, b, part, input_precision=PRECISION)
        if (step + 1) % p_blocks == 0:
            gates = gain + sample * gain_s
            if SUM_INPUTS:
                gate = tl.load(gates + o * gain_o, mask=in_outputs, other=0.0).to(tl.float32)[:, None]
            elif SUM_OUTPUTS:
                gate = tl.load(gates + i * gain_i, mask=in_inputs, other=0.0).to(tl.float32)[None, :]
            else:
                both = o[:, None] * gain_o + i[None, :] * gain_i
                gate = tl.load(gates + both, mask=inside, other=0.0).to(tl.float32)
            total += part * gate
            part = part * tl.load(weight, mask=inside, other=0.0).to(tl.float32)
            row = ((gain_tile * samples + sample) * groups + group) * HEIGHT * WIDTH + tap
            row = row * GAIN_OUTPUTS * GAIN_INPUTS
            if SUM_OUTPUTS and SUM_INPUTS:
                tl.store(gain_parts + row, tl.sum(tl.sum(part, 1), 0))
            elif SUM_INPUTS:
                tl.store(gain_parts + row + o, tl.sum(part, 1), mask=in_outputs)
            elif SUM_OUTPUTS:
                tl.store(gain_parts + row + i, tl.sum(part, 0), mask=in_inputs)
            else:
                tl.store(gain_parts + row + o[:, None] * inputs + i[None, :], part, mask=inside)
            part = tl.zeros((BLOCK_O, BLOCK_I), dtype=tl.float32)
    row = ((split * groups + group).to(tl.int64) * outputs + o[:, None]) * (HEIGHT * WIDTH) + tap
    tl.store(weight_parts + row * inputs + i[None, :], total, mask=inside)
