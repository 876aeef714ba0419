/* The two loops that numpy takes several passes for; kernels.py calls them, and does the same without them.

   They give the same bits on every processor: each column is added up by itself, in the order of the rows, and the compiler
   must not fuse a product with a sum (-ffp-contract=off). No pointer may be null, and every one is aligned. */

#include <stddef.h>
#include <stdint.h>

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
    MOST = 256     /* rows that are sorted; kernels.py knows this as well */
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
