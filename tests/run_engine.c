/* Runs the C engine over cases from a file: where Python cannot call it (another processor), or should not (sanitizers).

   A case: int64 numbers [bytes of the layer, linear?, ids?, live?, states, steps, batch, inputs, hidden or rows], the layer as
   pack.py laid it down, x or ids, live, h and c where they are. Written: the result (int64), y, h and c. Each array has a
   piece of memory of just its size, so that a step beyond it is seen. */

#include "engine.c"

#include <stdio.h>

static void *next(FILE *in, long bytes)
{
    void *memory;
    if (posix_memalign(&memory, 64, bytes) || fread(memory, 1, bytes, in) != (size_t)bytes)
        exit(2);
    return memory;
}

int main(int count, char **names)
{
    FILE *in = count == 3 ? fopen(names[1], "rb") : NULL, *out = in ? fopen(names[2], "wb") : NULL;
    int64_t n[9];
    if (!out)
        return 1;
    while (fread(n, sizeof n, 1, in)) {
        long rows = n[5] * n[6], of_y = rows * n[8] * 4, of_state = n[6] * n[8] * 4;
        char *layer = next(in, n[0]), *x = next(in, n[2] ? rows * 8 : rows * n[7] * 4), *live = n[3] ? next(in, rows) : NULL;
        float *h = n[4] > 0 ? next(in, of_state) : NULL, *c = n[4] > 1 ? next(in, of_state) : NULL, *y = malloc(of_y);
        int64_t result = n[1] ? sparsernn_linear(layer, (float *)x, y, rows, 1)
                              : sparsernn_run(layer, n[2] ? NULL : (float *)x, n[2] ? (int64_t *)x : NULL, (uint8_t *)live,
                                              y, h, c, h, c, n[5], n[6]);
        fwrite(&result, 8, 1, out);
        fwrite(y, 1, of_y, out);
        if (h)
            fwrite(h, 1, of_state, out);
        if (c)
            fwrite(c, 1, of_state, out);
        free(layer), free(x), free(live), free(h), free(c), free(y);
    }
    return fclose(out);
}
