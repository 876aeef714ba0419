/* Inner products of float32 rows in float64, a tile of pairs at a time: kernels.py calls it for few rows, where BLAS takes two
   to three times as long.

   It gives the same bits on every processor: column c of a strip is added to sum number c % LANES, strip by strip, and the sums
   of a strip are added up in one order. A product of two float32 is exact in float64, so here, unlike in kernels.c, it makes no
   difference whether it is fused with the sum. No pointer may be null, and every one is aligned. */

#include <stddef.h>
#include <string.h>

enum {
    LANES = 8,   /* sums that are kept for each pair of rows */
    STRIP = 512, /* columns; of a tile's rows they stay in the first-level cache. kernels.py knows this as well */
    ROWS = 4     /* rows are filled up with zeros to a multiple; kernels.py knows this as well */
};

/* so many sums as a register of the processor holds */
typedef double Two __attribute__((vector_size(16)));
typedef double Four __attribute__((vector_size(32)));
typedef double Eight __attribute__((vector_size(64)));

#define PARTS(Vector) (LANES * sizeof(double) / sizeof(Vector))
#define AT(Vector, rows, row, k, part) (*(const Vector *)((rows) + (row) * STRIP + (k) * LANES + (part) * (LANES / PARTS(Vector))))

static inline double added(const double *lanes)
{
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

/* the rows' columns in float64, with zeros after the last row and the last column */
static inline __attribute__((always_inline)) void widen(double *restrict wide, const float *restrict rows, size_t stride,
                                                        size_t count, size_t held, size_t steps)
{
    for (size_t r = 0; r < (count + ROWS - 1) / ROWS * ROWS; r++) {
        size_t i = 0;
        for (; r < count && i < held; i++)
            wide[r * STRIP + i] = (double)rows[r * stride + i];
        for (; i < steps * LANES; i++)
            wide[r * STRIP + i] = 0.0;
    }
}

/* SIDE * SIDE pairs at a time, whose sums fit the registers */
#define PRODUCTS(name, Vector, SIDE)                                                                                         \
    static void name(double *restrict sums, const float *restrict rows, size_t stride, size_t count, size_t width,           \
                     double *restrict space)                                                                                 \
    {                                                                                                                        \
        for (size_t start = 0; start < width; start += STRIP) {                                                              \
            size_t held = width - start < STRIP ? width - start : STRIP, steps = (held + LANES - 1) / LANES;                 \
            widen(space, rows + start, stride, count, held, steps);                                                          \
            for (size_t i = 0; i < count; i += SIDE)                                                                         \
                for (size_t j = i; j < count; j += SIDE) {                                                                   \
                    const double *above = space + i * STRIP, *left = space + j * STRIP;                                      \
                    Vector sum[SIDE][SIDE][PARTS(Vector)] = {{{{0.0}}}};                                                     \
                    for (size_t k = 0; k < steps; k++)                                                                       \
                        for (size_t part = 0; part < PARTS(Vector); part++)                                                  \
                            for (size_t p = 0; p < SIDE; p++)                                                                \
                                for (size_t q = 0; q < SIDE; q++)                                                            \
                                    sum[p][q][part] += AT(Vector, above, p, k, part) * AT(Vector, left, q, k, part);         \
                    for (size_t p = 0; p < SIDE && i + p < count; p++)                                                       \
                        for (size_t q = 0; q < SIDE && j + q < count; q++) {                                                 \
                            double lanes[LANES];                                                                             \
                            memcpy(lanes, sum[p][q], sizeof lanes);                                                          \
                            sums[(i + p) * count + j + q] += added(lanes);                                                   \
                        }                                                                                                    \
                }                                                                                                            \
        }                                                                                                                    \
    }

#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC push_options
#pragma GCC optimize("fp-contract=fast")
__attribute__((target("avx512f"))) PRODUCTS(with_avx512, Eight, 4)
__attribute__((target("avx2,fma"))) PRODUCTS(with_avx2, Four, 2)
#pragma GCC pop_options
#endif
PRODUCTS(without, Two, 2)

/* sums[i * count + j] += the product of rows i and j, for j >= i; what lies left of the diagonal is undefined. Row r begins at
   rows + r * stride. `space` begins at a multiple of 64 bytes, and has STRIP values for each row, filled up to ROWS. */
void add_products(double *restrict sums, const float *restrict rows, size_t stride, size_t count, size_t width,
                  double *restrict space)
{
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("avx512f")) {
        with_avx512(sums, rows, stride, count, width, space);
        return;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        with_avx2(sums, rows, stride, count, width, space);
        return;
    }
#endif
    without(sums, rows, stride, count, width, space);
}
