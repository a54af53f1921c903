/* How pack.py lays a layer down: numbers of eight bytes, then arrays, each 64 bytes aligned, at these distances from the
   first byte (0: there is none). All is read, nothing written. */

#include <stdint.h>

enum { NOTHING, SCATTERED, FLOAT_16x1, FLOAT_16x4, FLOAT_8x4, BYTES_16x4, BYTES_8x4 };
enum { LSTM, GRU, RNN };

/* W of a product a += W x, in panels of as many rows as its blocks are high. */
struct matrix {
    int64_t kind, panels, columns;
    int64_t reach;  /* rows that are written: panels go on to their full height */
    int64_t whole;  /* whether each row is written, and by one panel alone */
    int64_t first;  /* int32 [panels]: the first of a panel's rows; SCATTERED: int32 [8·panels], each row */
    int64_t start;  /* int32 [panels + 1]: the first of a panel's blocks */
    int64_t index;  /* uint16: the first column of each block; SCATTERED: of each weight */
    int64_t values; /* float or int8: by panel, block, then column and row (int8: row and column) */
    int64_t scale;  /* float [rows + 16]: what a sum of int8 products is multiplied with */
    double step;    /* of x in int8: x = step · q */
};

struct layer {
    int64_t cell, hard, hidden, rows, inputs, words;
    double limit;      /* of an RNN's h: above 0 that of a clipped ReLU (or infinite), 0: tanh */
    int64_t bias;      /* float [room of a row]: where a step without input begins */
    int64_t table;     /* float [words + 1, room of a row]: the same with the word's weights */
    int64_t places[4]; /* int32 [hidden]: of a block the row of each neuron, `rows` where it has none; 0: in order from `from` */
    int64_t from[4];
    int64_t fixed[4];  /* float [hidden, filled up to 16]: of a block the constants, NaN where a gate is live */
    struct matrix input, state;
};

/* Floats of a row of preactivations: panels write whole ones, up to 16 beyond the last row, and blocks are read so. */
#define ROOM(rows) ((((rows) + 15) / 16 + 2) * 16)
#define FILLED(count) (((count) + 15) / 16 * 16)

/* A whole model, one layer after the other and a product at the end; its pointers are those of this process. */
struct level {
    const char *layer;
    const int32_t *places; /* of each neuron, in a state as wide as it was before anything was removed */
};
struct chain {
    int64_t levels;
    int64_t last;        /* whether it answers on the last step alone */
    int64_t words;       /* how many ids it knows; 0: it reads numbers */
    int64_t width;       /* of a state */
    const int64_t *rows; /* [words]: the row of each in the first layer's table */
    const char *head;
    struct level level[];
};
