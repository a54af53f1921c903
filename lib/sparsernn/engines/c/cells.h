/* One step of an LSTM, GRU or RNN from its preactivations, LANES neurons at a time; the formulas are nets/cells.py's. */

/* Of a block the preactivations of each neuron, and its constants or none. */
struct block {
    const float *a, *fixed;
};

INLINE VF or_fixed(const struct block *block, long j, VF value)
{
    if (!block->fixed)
        return value;
    VF fixed = load(block->fixed + j);
    return pick(fixed == fixed, fixed, value);
}

INLINE VF gate(const int is_hard, const struct block *block, long j)
{
    VF a = load(block->a + j);
    return or_fixed(block, j, is_hard ? hard(a) : logistic(a));
}

INLINE void lstm(const int is_hard, const struct block *v, long filled, float *h, float *c)
{
    for (long j = 0; j < filled; j += LANES) {
        VF i = gate(is_hard, v, j), f = gate(is_hard, v + 1, j), o = gate(is_hard, v + 3, j);
        VF g = or_fixed(v + 2, j, tanh_of(load(v[2].a + j)));
        VF state = f * load(c + j) + i * g;
        store(c + j, state);
        store(h + j, o * tanh_of(state));
    }
}

INLINE void gru(const int is_hard, const struct block *v, long filled, float *h)
{
    for (long j = 0; j < filled; j += LANES) {
        VF r = gate(is_hard, v, j), z = gate(is_hard, v + 1, j);
        VF n = or_fixed(v + 2, j, tanh_of(load(v[2].a + j) + r * load(v[3].a + j)));
        store(h + j, n + z * (load(h + j) - n));
    }
}

INLINE void rnn(float limit, const struct block *v, long filled, float *h)
{
    VF most_of = (VF){0} + limit;
    for (long j = 0; j < filled; j += LANES) {
        VF a = load(v->a + j);
        store(h + j, or_fixed(v, j, limit ? most((VF){0}, least(most_of, a)) : tanh_of(a)));
    }
}

/* a: a row of preactivations; gathered: room for four blocks, where theirs are not in order. h, c [filled]: the state. */
static void advance(const char *base, const struct layer *l, const float *a, float *gathered, float *h, float *c)
{
    long filled = FILLED(l->hidden);
    struct block v[4];
    for (int k = 0; k < 4; k++) {
        const int32_t *places = AT(l->places[k]);
        v[k].a = a + l->from[k];
        v[k].fixed = l->fixed[k] ? AT(l->fixed[k]) : 0;
        if (l->places[k]) {
            float *own = gathered + k * filled;
            for (long j = 0; j < l->hidden; j++)
                own[j] = a[places[j]];
            v[k].a = own;
        }
    }
    if (l->cell == LSTM)
        l->hard ? lstm(1, v, filled, h, c) : lstm(0, v, filled, h, c);
    else if (l->cell == GRU)
        l->hard ? gru(1, v, filled, h) : gru(0, v, filled, h);
    else
        rnn(l->limit, v, filled, h);
    memset(h + l->hidden, 0, (filled - l->hidden) * sizeof *h);
}
