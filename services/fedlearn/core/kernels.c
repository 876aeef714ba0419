/* The loops that numpy takes several passes for: kernels.py calls those over updates, rounding.py those of int8. Both do the
   same without them.

   They give the same bits on every processor: each column is added up by itself, in the order of the rows, and the compiler
   must not fuse a product with a sum (-ffp-contract=off). No pointer may be null, and every one is aligned. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__gnu_linux__)
/* one copy for each kind of processor; which one runs is found out when the library is loaded */
#define FOR_ALL_PROCESSORS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_ALL_PROCESSORS
#endif

enum {
    WINDOW = 4096, /* elements; of the sum they stay in the first-level cache */
    AT_ONCE = 8,   /* rows that are added while an element of the sum is in a register */
    LANES = 32,    /* columns that are sorted side by side */
    MOST = 256,    /* rows that are sorted; kernels.py knows this as well */
    BLOCK = 1024   /* values that share a scale; rounding.py knows this as well */
};

#define ADD(MANY)                                                          \
    do {                                                                   \
        const double *factor = factors + row;                              \
        for (size_t i = 0; i < width; i++) {                               \
            double value = sum[i];                                         \
            for (size_t k = 0; k < (MANY); k++)                            \
                value += factor[k] * (double)rows[row + k][start + i];     \
            sum[i] = value;                                                \
        }                                                                  \
        row += (MANY);                                                     \
    } while (0)

/* total[i] += factors[0] * rows[0][i], then += factors[1] * rows[1][i], and so on */
FOR_ALL_PROCESSORS
void add_weighted(double *restrict total, const float *const *restrict rows, const double *restrict factors, size_t count,
                  size_t length)
{
    for (size_t start = 0; start < length; start += WINDOW) {
        size_t width = length - start < WINDOW ? length - start : WINDOW, row = 0;
        double *restrict sum = total + start;
        while (count - row >= AT_ONCE)
            ADD(AT_ONCE);
        if (count - row >= 4)
            ADD(4);
        if (count - row >= 2)
            ADD(2);
        if (count - row >= 1)
            ADD(1);
    }
}

/* whether no value is NaN or infinite */
FOR_ALL_PROCESSORS
int all_finite(const float *restrict values, size_t count)
{
    uint32_t largest = 0; /* without their signs, the bits of floats are in the order of the floats */
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, values + i, sizeof bits);
        bits &= INT32_MAX;
        largest = bits > largest ? bits : largest;
    }
    return largest < 0x7f800000; /* infinity's; NaNs are above */
}

/* out[i] = the mean of column i's values number `first` to `first + kept - 1`, counted from the smallest, added up in that
   order. Row r begins at rows + r * stride. `network` holds pairs of rows: of each the smaller value goes to the first. */
FOR_ALL_PROCESSORS
void mean_of_ordered(double *restrict out, const float *restrict rows, size_t stride, size_t count, size_t width,
                     const uint16_t *restrict network, size_t comparators, size_t first, size_t kept)
{
    _Alignas(64) float wires[MOST][LANES];
    for (size_t start = 0; start < width; start += LANES) {
        size_t lanes = width - start < LANES ? width - start : LANES;
        for (size_t r = 0; r < count; r++)
            for (size_t i = 0; i < LANES; i++)
                wires[r][i] = i < lanes ? rows[r * stride + start + i] : 0.0f;
        for (size_t c = 0; c < comparators; c++) {
            float *restrict low = wires[network[2 * c]], *restrict high = wires[network[2 * c + 1]];
            for (size_t i = 0; i < LANES; i++) {
                float a = low[i], b = high[i];
                low[i] = b < a ? b : a;
                high[i] = b < a ? a : b;
            }
        }
        double sums[LANES] = {0.0};
        for (size_t r = first; r < first + kept; r++)
            for (size_t i = 0; i < LANES; i++)
                sums[i] += (double)wires[r][i];
        for (size_t i = 0; i < lanes; i++)
            out[start + i] = sums[i] / (double)kept;
    }
}

/* scales[b] = the next float above the largest magnitude of block b / 127, or 0 if that is 0; codes[i] = floor(values[i] / its
   block's scale + (chances[i] + 1/2) / 65536). 0 when a value is not finite: then the rest is not written. */
FOR_ALL_PROCESSORS
int round_blocks(float *restrict scales, int8_t *restrict codes, const float *restrict values, const uint16_t *restrict chances,
                 size_t count)
{
    for (size_t start = 0; start < count; start += BLOCK) {
        size_t end = count - start < BLOCK ? count : start + BLOCK;
        int32_t largest = 0; /* without their signs, the bits of floats are in the order of the floats */
        for (size_t i = start; i < end; i++) {
            int32_t bits;
            memcpy(&bits, values + i, sizeof bits);
            bits &= INT32_MAX;
            largest = bits > largest ? bits : largest;
        }
        if (largest >= 0x7f800000) /* infinity's; NaNs are above */
            return 0;
        float scale = 0.0f;
        if (largest > 0) {
            memcpy(&scale, &largest, sizeof scale);
            scale /= 127.0f;
            int32_t bits;
            memcpy(&bits, &scale, sizeof bits);
            bits++; /* the next float */
            memcpy(&scale, &bits, sizeof scale);
        }
        scales[start / BLOCK] = scale;
        float step = largest > 0 ? scale : 1.0f;
        for (size_t i = start; i < end; i++) {
            float steps = values[i] / step;
            float raised = steps + ((float)chances[i] + 0.5f) * 0x1p-16f;
            int32_t code = (int32_t)raised; /* towards 0; what is below 0 goes to the next below */
            codes[i] = (int8_t)(code - ((float)code > raised));
        }
    }
    return 1;
}

/* out[i] = codes[i] times its block's scale, where codes[0] is number `first` of what the scales belong to */
FOR_ALL_PROCESSORS
void scale_blocks(float *restrict out, const int8_t *restrict codes, const float *restrict scales, size_t first, size_t count)
{
    for (size_t start = 0, end; start < count; start = end) {
        size_t left = BLOCK - (first + start) % BLOCK;
        float scale = scales[(first + start) / BLOCK];
        end = count - start < left ? count : start + left;
        for (size_t i = start; i < end; i++)
            out[i] = (float)codes[i] * scale;
    }
}

#define ADD_SCALED(MANY)                                                                        \
    do {                                                                                        \
        float scale[MANY];                                                                      \
        for (size_t k = 0; k < (MANY); k++)                                                     \
            scale[k] = scales[row + k][block];                                                  \
        const double *factor = factors + row;                                                   \
        for (size_t i = 0; i < width; i++) {                                                    \
            double value = sum[i];                                                              \
            for (size_t k = 0; k < (MANY); k++)                                                 \
                value += factor[k] * (double)((float)codes[row + k][start + i] * scale[k]);     \
            sum[i] = value;                                                                     \
        }                                                                                       \
        row += (MANY);                                                                          \
    } while (0)

/* total[i] += factors[0] * out[i] that scale_blocks gives of codes[0] and scales[0], then of codes[1] and scales[1], and so on */
FOR_ALL_PROCESSORS
void add_scaled(double *restrict total, const int8_t *const *restrict codes, const float *const *restrict scales,
                const double *restrict factors, size_t count, size_t first, size_t length)
{
    for (size_t start = 0, width; start < length; start += width) {
        size_t left = BLOCK - (first + start) % BLOCK, block = (first + start) / BLOCK, row = 0;
        width = length - start < left ? length - start : left;
        double *restrict sum = total + start;
        while (count - row >= AT_ONCE)
            ADD_SCALED(AT_ONCE);
        if (count - row >= 4)
            ADD_SCALED(4);
        if (count - row >= 2)
            ADD_SCALED(2);
        if (count - row >= 1)
            ADD_SCALED(1);
    }
}
