/* a = from + W x for up to eight x at once, by panels of HEIGHT rows; included once for each height, with PART lanes a vector.

   A panel's sums stay in registers. A single x has several sums a row, added up at the end: each has to wait for the one
   before. The rows beyond a panel's last have weights of zero and are written back as they were. */

#define PASTE(a, b, c) a##b##_##c
#define NAMED(a, b, c) PASTE(a, b, c)
#define NAME(what) NAMED(what, HEIGHT, PART)
#define PARTS (HEIGHT / PART)

/* Blocks of `group` columns. x and a: those of the first of `nb`, the others at a distance. */
INLINE void NAME(floats)(const int group, const int nb, const float *w, const uint16_t *index, long count,
                         const float *x, long to_x, const float *from, long to_from, float *a, long to_a)
{
    const int ways = nb * PARTS >= 4 ? 1 : 4 / (nb * PARTS), blocks = group >= ways ? 1 : ways / group;
    PF sum[8][4][PARTS];
    EACH(b, nb) EACH(way, ways) EACH(part, PARTS) sum[b][way][part] = (PF){0};
    long i = 0;
    for (; i + blocks <= count; i += blocks, w += blocks * group * HEIGHT)
        EACH(k, blocks * group) EACH(part, PARTS) {
            PF weights;
            memcpy(&weights, w + k * HEIGHT + part * PART, sizeof weights);
            EACH(b, nb) sum[b][k % ways][part] += weights * x[b * to_x + index[i + k / group] + k % group];
        }
    for (; i < count; i++, w += group * HEIGHT)
        EACH(k, group) EACH(part, PARTS) {
            PF weights;
            memcpy(&weights, w + k * HEIGHT + part * PART, sizeof weights);
            EACH(b, nb) sum[b][k % ways][part] += weights * x[b * to_x + index[i] + k];
        }
    EACH(b, nb) EACH(part, PARTS) {
        PF total = sum[b][0][part], old;
        EACH(way, ways - 1) total += sum[b][way + 1][part];
        float *to = a + b * to_a + part * PART;
        memcpy(&old, from + b * to_from + part * PART, sizeof old);
        old += total;
        memcpy(to, &old, sizeof old);
    }
}

/* The same in int8: blocks of four columns, a sum of products times the row's scale. */
INLINE void NAME(bytes)(const int nb, const int8_t *w, const uint16_t *index, long count, const float *scale,
                        const int8_t *x, long to_x, const float *from, long to_from, float *a, long to_a)
{
    const int ways = nb * PARTS >= 4 ? 1 : 4 / (nb * PARTS);
    PI sum[8][4][PARTS];
    EACH(b, nb) EACH(way, ways) EACH(part, PARTS) sum[b][way][part] = (PI){0};
    long i = 0;
    for (; i + ways <= count; i += ways, w += ways * 4 * HEIGHT)
        EACH(way, ways) EACH(b, nb) {
            int32_t quad;
            memcpy(&quad, x + b * to_x + index[i + way], 4);
            EACH(part, PARTS) sum[b][way][part] = DOT(sum[b][way][part], quad, w + (way * HEIGHT + part * PART) * 4);
        }
    for (; i < count; i++, w += 4 * HEIGHT)
        EACH(b, nb) {
            int32_t quad;
            memcpy(&quad, x + b * to_x + index[i], 4);
            EACH(part, PARTS) sum[b][0][part] = DOT(sum[b][0][part], quad, w + part * PART * 4);
        }
    EACH(b, nb) EACH(part, PARTS) {
        PI total = sum[b][0][part];
        PF old, times;
        EACH(way, ways - 1) total += sum[b][way + 1][part];
        float *to = a + b * to_a + part * PART;
        memcpy(&old, from + b * to_from + part * PART, sizeof old);
        memcpy(&times, scale + part * PART, sizeof times);
        old += __builtin_convertvector(total, PF) * times;
        memcpy(to, &old, sizeof old);
    }
}

/* All panels of a matrix. */
INLINE void NAME(matrix_floats)(const int group, const int nb, const char *base, const struct matrix *m,
                                const float *x, long to_x, const float *from, long to_from, float *a, long to_a)
{
    const int32_t *first = AT(m->first), *start = AT(m->start);
    const uint16_t *index = AT(m->index);
    const float *values = AT(m->values);
    for (long p = 0; p < m->panels; p++)
        NAME(floats)(group, nb, values + (long)start[p] * group * HEIGHT, index + start[p], start[p + 1] - start[p],
                     x, to_x, from + first[p], to_from, a + first[p], to_a);
}

INLINE void NAME(matrix_bytes)(const int nb, const char *base, const struct matrix *m,
                               const int8_t *x, long to_x, const float *from, long to_from, float *a, long to_a)
{
    const int32_t *first = AT(m->first), *start = AT(m->start);
    const uint16_t *index = AT(m->index);
    const int8_t *values = AT(m->values);
    const float *scale = AT(m->scale);
    for (long p = 0; p < m->panels; p++)
        NAME(bytes)(nb, values + (long)start[p] * 4 * HEIGHT, index + start[p], start[p + 1] - start[p],
                    scale + first[p], x, to_x, from + first[p], to_from, a + first[p], to_a);
}

#undef PASTE
#undef NAMED
#undef NAME
#undef PARTS
#undef HEIGHT
#undef PART
#undef PF
#undef PI
#undef DOT
