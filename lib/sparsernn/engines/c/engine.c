/* A recurrent layer without its zeros: whole sequences or a step, from a state to a state; a product on its own; and a model
   made of both, in one call.

   Compiled once for each path of simd.h, as shared libraries that Python calls (build.py), from what pack.py laid down. Eight
   sequences at a time, so that a weight that was read is used eight times; of fewer sequences, the products with the
   input take several steps at a time for the same reason. */

#include <math.h>
#include <stdlib.h>

#include "format.h"
#include "simd.h"
#include "nonlinear.h"
#include "products.h"
#include "cells.h"

enum { TOGETHER = 8 }; /* x of one product: 16 rows of eight are half of the registers of AVX-512 */
enum { NO_MEMORY = -1, NO_SUCH_WORD = -2 };

static char *piece(char **room, long bytes)
{
    char *start = *room;
    *room += (bytes + 63) / 64 * 64;
    return start;
}

static int is_finite(const float *x, long count)
{
    for (long i = 0; i < count; i++)
        if (x[i] - x[i] != 0)
            return 0;
    return 1;
}

/* a [rows, ·] = from + rows x [rows, columns] times a matrix; side: room for their numbers, in float or int8 → how many of
   them int8 cut off. Of a row that is not finite int8 makes NaN: it has no steps for it. */
static int64_t rows_times(const char *base, const struct matrix *m, int rows, const float *x, long to_x, void *side,
                          const float *from, long to_from, float *a, long to_a)
{
    if (m->kind == NOTHING)
        return 0;
    if (!in_bytes(m)) {
        multiply(base, m, rows, x, to_x, from, to_from, a, to_a, side);
        return 0;
    }
    long to_q = FILLED(m->columns) + 64;
    int64_t outside = 0;
    int8_t *q = side;
    int odd[TOGETHER];
    for (int row = 0; row < rows; row++) {
        int64_t cut_off = quantise(x + row * to_x, m->columns, m->step, q + row * to_q);
        odd[row] = cut_off && !is_finite(x + row * to_x, m->columns);
        outside += cut_off;
    }
    multiply(base, m, rows, q, to_q, from, to_from, a, to_a, side);
    for (int row = 0; row < rows; row++)
        for (long i = 0; odd[row] && i < m->reach; i++)
            a[row * to_a + i] = NAN;
    return outside;
}

/* x float [steps, batch, inputs] or, where that is not given, ids int64 [steps, batch] of words, `words` for a removed one.
   live: bool [steps, batch], false where a step is padding, or NULL. y float [steps, batch, hidden].
   h, c: float [batch, hidden], the state to begin with, NULL for zeros; last_…: where the last one goes, NULL for nowhere.
   → how many numbers an int8 product cut off, or what was wrong (below 0); then nothing was done. */
int64_t sparsernn_run(const char *base, const float *x, const int64_t *ids, const uint8_t *live, float *y,
                      const float *h, const float *c, float *last_h, float *last_c, int64_t steps, int64_t batch)
{
    const struct layer *l = AT(0);
    long hidden = l->hidden, filled = FILLED(hidden), to_a = ROOM(l->rows), outside = 0;
    if (ids)
        for (long i = 0; i < steps * batch; i++)
            if (ids[i] < 0 || ids[i] > l->words)
                return NO_SUCH_WORD;
    long widest = FILLED(l->inputs > hidden ? l->inputs : hidden) + 64;
    long of_a = TOGETHER * to_a * 4 + 64, of_state = TOGETHER * filled * 4 + 64;
    char *memory = malloc(of_a + 2 * of_state + 16 * filled + 64 + TOGETHER * widest * 4 + 128);
    if (!memory)
        return NO_MEMORY;
    char *room = (char *)(((uintptr_t)memory + 63) / 64 * 64);
    float *a = (float *)piece(&room, of_a), *own_h = (float *)piece(&room, of_state);
    float *own_c = (float *)piece(&room, of_state), *gathered = (float *)piece(&room, 16 * filled);
    void *side = piece(&room, TOGETHER * widest * 4);
    memset(gathered, 0, 16 * filled);
    if (in_bytes(&l->state) || in_bytes(&l->input))
        memset(side, 0, TOGETHER * widest);
    for (long begin = 0; begin < batch; begin += TOGETHER) {
        int group = batch - begin < TOGETHER ? (int)(batch - begin) : TOGETHER;
        int at_once = group == batch ? TOGETHER / group : 1;
        memset(own_h, 0, of_state);
        memset(own_c, 0, of_state);
        for (int b = 0; h && b < group; b++)
            memcpy(own_h + b * filled, h + (begin + b) * hidden, hidden * sizeof *h);
        for (int b = 0; c && b < group; b++)
            memcpy(own_c + b * filled, c + (begin + b) * hidden, hidden * sizeof *c);
        for (long t = 0; t < steps; t++) {
            float *here = a;
            long row = t * batch + begin;
            if (ids) {
                const float *table = AT(l->table);
                for (int b = 0; b < group; b++)
                    memcpy(a + b * to_a, table + ids[row + b] * to_a, to_a * sizeof *a);
            } else {
                if (t % at_once == 0) {
                    int rows = group * (int)(steps - t < at_once ? steps - t : at_once);
                    for (int i = 0; i < rows; i++)
                        memcpy(a + i * to_a, AT(l->bias), to_a * sizeof *a);
                    outside += rows_times(base, &l->input, rows, x + row * l->inputs, l->inputs, side, a, to_a, a, to_a);
                }
                here += t % at_once * group * to_a;
            }
            outside += rows_times(base, &l->state, group, own_h, filled, side, here, to_a, here, to_a);
            for (int b = 0; b < group; b++) {
                float *to = y + (row + b) * hidden;
                if (live && !live[row + b]) {
                    memset(to, 0, hidden * sizeof *to);
                    continue;
                }
                advance(base, l, here + b * to_a, gathered, own_h + b * filled, own_c + b * filled);
                memcpy(to, own_h + b * filled, hidden * sizeof *to);
            }
        }
        for (int b = 0; last_h && b < group; b++)
            memcpy(last_h + (begin + b) * hidden, own_h + b * filled, hidden * sizeof *h);
        for (int b = 0; last_c && b < group; b++)
            memcpy(last_c + (begin + b) * hidden, own_c + b * filled, hidden * sizeof *c);
    }
    free(memory);
    return outside;
}

/* y [count, rows] = x [count, inputs] Wᵀ + bias, `times` times over, which only a clock has a use for. */
int64_t sparsernn_linear(const char *base, const float *x, float *y, int64_t count, int64_t times)
{
    const struct layer *l = AT(0);
    long to_a = ROOM(l->rows), of_a = TOGETHER * to_a * 4 + 64, widest = FILLED(l->inputs) + 64;
    int64_t outside = 0;
    char *memory = malloc(of_a + TOGETHER * widest * 4 + 128);
    if (!memory)
        return NO_MEMORY;
    char *room = (char *)(((uintptr_t)memory + 63) / 64 * 64);
    float *a = (float *)piece(&room, of_a);
    void *side = piece(&room, TOGETHER * widest * 4);
    memset(side, 0, TOGETHER * widest);
    for (int64_t time = 0; time < times; time++)
        for (long begin = 0; begin < count; begin += TOGETHER) {
            int rows = count - begin < TOGETHER ? (int)(count - begin) : TOGETHER;
            int in_place = l->input.reach <= l->rows;
            float *to = in_place ? y + begin * l->rows : a;
            long next = in_place ? l->rows : to_a;
            for (int i = 0; !l->input.whole && i < rows; i++)
                memcpy(to + i * next, AT(l->bias), next * sizeof *to);
            outside += rows_times(base, &l->input, rows, x + begin * l->inputs, l->inputs, side,
                                  l->input.whole ? AT(l->bias) : to, l->input.whole ? 0 : next, to, next);
            for (int i = 0; !in_place && i < rows; i++)
                memcpy(y + (begin + i) * l->rows, a + i * to_a, l->rows * sizeof *y);
        }
    free(memory);
    return outside;
}

/* The state of a layer [batch, hidden] → [batch, width], zeros where nothing is left. */
static void spread(const int32_t *places, const float *from, long hidden, float *to, long width, long batch)
{
    memset(to, 0, batch * width * sizeof *to);
    for (long b = 0; b < batch; b++)
        for (long j = 0; j < hidden; j++)
            to[b * width + places[j]] = from[b * hidden + j];
}

/* A whole model, each sequence from zeros. x float [steps, batch, inputs] or ids int64 [steps, batch] of words; answer float
   [batch, rows] or, where it answers on every step, [steps, batch, rows]; h, c: float [levels, batch, width], where the last
   states go, NULL for nowhere. → as sparsernn_run. */
int64_t sparsernn_chain(const struct chain *chain, const float *x, const int64_t *ids, float *answer, float *h, float *c,
                        int64_t steps, int64_t batch)
{
    long count = steps * batch, widest = 1, outside = 0;
    for (long n = 0; n < chain->levels; n++) {
        long hidden = ((const struct layer *)chain->level[n].layer)->hidden;
        widest = hidden > widest ? hidden : widest;
    }
    int64_t *rows = malloc(((ids ? count : 0) + 1) * sizeof *rows);
    float *y = malloc((2 * count + 2 * batch) * widest * sizeof *y);
    if (!rows || !y) {
        free(rows), free(y);
        return NO_MEMORY;
    }
    float *next = y, *last_h = y + 2 * count * widest, *last_c = last_h + batch * widest;
    for (long i = 0; ids && i < count && outside >= 0; i++) {
        if (ids[i] < 0 || ids[i] >= chain->words)
            outside = NO_SUCH_WORD;
        else
            rows[i] = chain->rows[ids[i]];
    }
    for (long n = 0; n < chain->levels && outside >= 0; n++) {
        const struct level *level = chain->level + n;
        const struct layer *layer = (const struct layer *)level->layer;
        long hidden = layer->hidden, to = n * batch * chain->width;
        int64_t found = sparsernn_run(level->layer, x, n ? 0 : ids ? rows : 0, 0, next, 0, 0, h ? last_h : 0,
                                      c ? last_c : 0, steps, batch);
        outside = found < 0 ? found : outside + found;
        if (h)
            spread(level->places, last_h, hidden, h + to, chain->width, batch);
        if (c)
            spread(level->places, last_c, hidden, c + to, chain->width, batch);
        x = next;
        next = next == y ? y + count * widest : y;
    }
    if (outside >= 0) {
        long hidden = ((const struct layer *)chain->level[chain->levels - 1].layer)->hidden;
        const float *read = chain->last ? x + (steps - 1) * batch * hidden : x;
        int64_t found = sparsernn_linear(chain->head, read, answer, chain->last ? batch : count, 1);
        outside = found < 0 ? found : outside + found;
    }
    free(rows), free(y);
    return outside;
}
