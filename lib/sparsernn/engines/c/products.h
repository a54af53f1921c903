/* a = from + W x, W laid down as format.h says, for 1 to 8 x at a time. */

#define AT(distance) ((const void *)(base + (distance)))

#define HEIGHT 16
#define PART LANES
#define PF VF
#define PI VI
#if LANES == 16
#define DOT dot16
#elif LANES == 8
#define DOT dot8
#else
#define DOT dot4
#endif
#include "product.h"

#define HEIGHT 8
#if LANES == 4
#define PART 4
#define PF f4
#define PI i4
#define DOT dot4
#else
#define PART 8
#define PF f8
#define PI i8
#define DOT dot8
#endif
#include "product.h"

#define SIDE 8 /* rows of a panel of scattered weights: each weight brings its column, and there is one row a lane */

INLINE void scattered(const int nb, const char *base, const struct matrix *m, const float *x, long to_x, float *a,
                      long to_a)
{
    const int32_t *row = AT(m->first), *start = AT(m->start);
    const uint16_t *index = AT(m->index);
    const float *values = AT(m->values);
    for (long p = 0; p < m->panels; p++) {
        f4 sum[8][2];
        EACH(b, nb) sum[b][0] = sum[b][1] = (f4){0};
        for (long i = start[p]; i < start[p + 1]; i++) {
            const uint16_t *at = index + i * SIDE;
            f4 w0, w1;
            memcpy(&w0, values + i * SIDE, sizeof w0);
            memcpy(&w1, values + i * SIDE + 4, sizeof w1);
            EACH(b, nb) {
                const float *from = x + b * to_x;
                sum[b][0] += w0 * (f4){from[at[0]], from[at[1]], from[at[2]], from[at[3]]};
                sum[b][1] += w1 * (f4){from[at[4]], from[at[5]], from[at[6]], from[at[7]]};
            }
        }
        EACH(b, nb) EACH(lane, SIDE) /* rows that fill up the last panel are beyond all others */
            a[b * to_a + row[p * SIDE + lane]] += sum[b][lane / 4][lane % 4];
    }
}

/* The same for several x side by side in a vector, from `side` [columns, 8]: a weight's x is then one load. */
INLINE void scattered_side_by_side(int nb, const char *base, const struct matrix *m, const float *x, long to_x, float *a,
                                   long to_a, float *side)
{
    const int32_t *row = AT(m->first), *start = AT(m->start);
    const uint16_t *index = AT(m->index);
    const float *values = AT(m->values);
    memset(side, 0, m->columns * 8 * sizeof *side);
    for (int b = 0; b < nb; b++)
        for (long column = 0; column < m->columns; column++)
            side[column * 8 + b] = x[b * to_x + column];
    for (long p = 0; p < m->panels; p++) {
        f8 sum[SIDE];
        EACH(lane, SIDE) sum[lane] = (f8){0};
        for (long i = start[p] * SIDE; i < (long)start[p + 1] * SIDE; i += SIDE)
            EACH(lane, SIDE) {
                f8 all;
                memcpy(&all, side + index[i + lane] * 8, sizeof all);
                sum[lane] += values[i + lane] * all;
            }
        EACH(lane, SIDE) for (int b = 0; b < nb; b++) a[b * to_a + row[p * SIDE + lane]] += sum[lane][b];
    }
}

/* The product for a kind of block, both it and the number of x constants for the compiler. */
#define BY_KIND(nb)                                                                                                    \
    switch (m->kind) {                                                                                                 \
    case SCATTERED: SCATTER(nb); break;                                                                                \
    case FLOAT_16x1: FLOATS16(1, nb); break;                                                                           \
    case FLOAT_16x4: FLOATS16(4, nb); break;                                                                           \
    case FLOAT_8x4: FLOATS8(4, nb); break;                                                                             \
    case BYTES_16x4: BYTES16(nb); break;                                                                               \
    case BYTES_8x4: BYTES8(nb); break;                                                                                 \
    }                                                                                                                  \
    break

#define SCATTER(nb)                                                                                                    \
    nb < 3 ? scattered(nb, base, m, x, to_x, a, to_a) : scattered_side_by_side(nb, base, m, x, to_x, a, to_a, side)
#define JOIN3(a, b, c) a##b##c
#define JOIN(a, b, c) JOIN3(a, b, c)
#define FLOATS16(group, nb) JOIN(matrix_floats16, _, LANES)(group, nb, base, m, x, to_x, from, to_from, a, to_a)
#define BYTES16(nb) JOIN(matrix_bytes16, _, LANES)(nb, base, m, x, to_x, from, to_from, a, to_a)
#if LANES == 4
#define FLOATS8(group, nb) matrix_floats8_4(group, nb, base, m, x, to_x, from, to_from, a, to_a)
#define BYTES8(nb) matrix_bytes8_4(nb, base, m, x, to_x, from, to_from, a, to_a)
#else
#define FLOATS8(group, nb) matrix_floats8_8(group, nb, base, m, x, to_x, from, to_from, a, to_a)
#define BYTES8(nb) matrix_bytes8_8(nb, base, m, x, to_x, from, to_from, a, to_a)
#endif

/* x: float, or int8 where the matrix is; of the first of nb ≤ 8, the next at a distance (in numbers), as with from, which may be
   a itself and for scattered weights is, and a. side: room for 8 floats a column. */
static void multiply(const char *base, const struct matrix *m, int nb, const void *x, long to_x, const float *from,
                     long to_from, float *a, long to_a, float *side)
{
    switch (nb) {
    case 1: BY_KIND(1);
    case 2: BY_KIND(2);
    case 3: BY_KIND(3);
    case 4: BY_KIND(4);
    case 5: BY_KIND(5);
    case 6: BY_KIND(6);
    case 7: BY_KIND(7);
    case 8: BY_KIND(8);
    }
}

INLINE int in_bytes(const struct matrix *m) { return m->kind == BYTES_16x4 || m->kind == BYTES_8x4; }

/* x [count] as whole numbers of steps, to the nearest, from −127 to 127 → how many were further out. */
static int64_t quantise(const float *x, long count, float step, int8_t *q)
{
    VF times = (VF){0} + 1.0f / step, bound = (VF){0} + 127.0f, end = (VF){0} + 127.5f;
    VI over = {0};
    long i = 0;
    for (; i + LANES <= count; i += LANES) {
        VF t = load(x + i) * times;
        over += ~((t <= end) & (t >= -end));
        VI whole = (VI)(most(-bound, least(bound, t)) + ROUND) - (VI)((VF){0} + ROUND);
        to_bytes(q + i, whole + FLIP);
    }
    int64_t outside = 0;
    for (int lane = 0; lane < LANES; lane++)
        outside -= over[lane];
    if (i < count) {
        float rest[LANES] = {0};
        int8_t last[LANES];
        memcpy(rest, x + i, (count - i) * sizeof *x);
        outside += quantise(rest, LANES, step, last);
        memcpy(q + i, last, count - i);
    }
    return outside;
}
