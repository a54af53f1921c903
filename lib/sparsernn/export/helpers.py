"""The C functions that a step calls, each written only where it is called: name, weights (or None for either) → text."""

HELPERS = {  # by name and weights, in the order they are written: what the steps call, and nothing they do not
    ("place", None): """\
/* the row of an id among those that have one, or -1 */
static int place(int32_t word, int rows)
{
    int low = 0, high = rows - 1;
    while (low <= high) {
        int middle = (low + high) / 2;
        if (words[middle] == word)
            return middle;
        if (words[middle] < word)
            low = middle + 1;
        else
            high = middle - 1;
    }
    return -1;
}
""",
    ("quantised", None): """\
/* numbers as whole steps of their largest / 127; returns the step */
static float quantised(const float *x, int n, int8_t *whole)
{
    float largest = 0.0f;
    for (int k = 0; k < n; k++)
        largest = fmaxf(largest, fabsf(x[k]));
    for (int k = 0; k < n; k++)
        whole[k] = largest > 0.0f ? (int8_t)lrintf(x[k] / largest * 127.0f) : 0;
    return largest / 127.0f;
}
""",
    ("quantised_state", None): """\
/* what lies between -1 and 1 as whole steps of 1/127 */
static void quantised_state(const float *x, int n, int8_t *whole)
{
    for (int k = 0; k < n; k++)
        whole[k] = (int8_t)lrintf(x[k] * 127.0f);
}
""",
    ("add_dense", "float32"): """\
/* y += W x, row by row; eight sums at a time, which a compiler may keep in one register */
static void add_dense(const float *weight, int rows, int columns, const float *x, float *y)
{
    for (int row = 0; row < rows; row++, weight += columns) {
        float sums[8] = {0.0f}, sum = 0.0f;
        int k = 0;
        for (; k + 8 <= columns; k += 8)
            for (int lane = 0; lane < 8; lane++)
                sums[lane] += weight[k + lane] * x[k + lane];
        for (; k < columns; k++)
            sum += weight[k] * x[k];
        for (int lane = 0; lane < 8; lane++)
            sum += sums[lane];
        y[row] += sum;
    }
}
""",
    ("add_runs", "float32"): """\
/* y += W x, of each row its runs: how many, then where each begins and its length */
static void add_runs(const float *weight, const uint16_t *runs, int rows, const float *x, float *y)
{
    for (int row = 0; row < rows; row++) {
        float sum = 0.0f;
        for (int left = *runs++; left > 0; left--, runs += 2)
            for (int k = runs[0]; k < runs[0] + runs[1]; k++)
                sum += *weight++ * x[k];
        y[row] += sum;
    }
}
""",
    ("add_row", "float32"): """\
/* y += a row of a table */
static void add_row(const float *table, int row, int columns, float *y)
{
    for (int k = 0; k < columns; k++)
        y[k] += table[(size_t)row * (size_t)columns + (size_t)k];
}
""",
    ("add_row_runs", "float32"): """\
/* y += a row of a table of runs; rows: the first run and the first weight of each row */
static void add_row_runs(const float *table, const uint16_t *runs, const uint32_t *rows, int row, float *y)
{
    const float *weight = table + rows[2 * row + 1];
    for (uint32_t run = rows[2 * row]; run < rows[2 * row + 2]; run++)
        for (int k = runs[2 * run]; k < runs[2 * run] + runs[2 * run + 1]; k++)
            y[k] += *weight++;
}
""",
    ("add_dense", "int8"): """\
/* y += W x, row by row; a weight is a step of its row's scale, x of `step` */
static void add_dense(const int8_t *weight, const float *scale, int rows, int columns, const int8_t *x, float step,
                      float *y)
{
    for (int row = 0; row < rows; row++, weight += columns) {
        int32_t sum = 0;
        for (int k = 0; k < columns; k++)
            sum += weight[k] * x[k];
        y[row] += scale[row] * step * (float)sum;
    }
}
""",
    ("add_runs", "int8"): """\
/* y += W x, of each row its runs: how many, then where each begins and its length */
static void add_runs(const int8_t *weight, const uint16_t *runs, const float *scale, int rows, const int8_t *x,
                     float step, float *y)
{
    for (int row = 0; row < rows; row++) {
        int32_t sum = 0;
        for (int left = *runs++; left > 0; left--, runs += 2)
            for (int k = runs[0]; k < runs[0] + runs[1]; k++)
                sum += *weight++ * x[k];
        y[row] += scale[row] * step * (float)sum;
    }
}
""",
    ("add_row", "int8"): """\
/* y += a row of a table, each column in steps of its scale */
static void add_row(const int8_t *table, const float *scale, int row, int columns, float *y)
{
    for (int k = 0; k < columns; k++)
        y[k] += scale[k] * (float)table[(size_t)row * (size_t)columns + (size_t)k];
}
""",
    ("add_row_runs", "int8"): """\
/* y += a row of a table of runs; rows: the first run and the first weight of each row */
static void add_row_runs(const int8_t *table, const uint16_t *runs, const uint32_t *rows, const float *scale, int row,
                         float *y)
{
    const int8_t *weight = table + rows[2 * row + 1];
    for (uint32_t run = rows[2 * row]; run < rows[2 * row + 2]; run++)
        for (int k = runs[2 * run]; k < runs[2 * run] + runs[2 * run + 1]; k++)
            y[k] += scale[k] * (float)*weight++;
}
""",
    ("logistic", None): """\
static float logistic(float a)
{
    return 1.0f / (1.0f + expf(-a));
}
""",
    ("hard", None): """\
static float hard(float a)
{
    const float y = 0.2f * a + 0.5f;
    return y < 0.0f ? 0.0f : y > 1.0f ? 1.0f : y; /* NaN stays NaN */
}
""",
    ("relu", None): """\
static float relu(float a)
{
    return a < 0.0f ? 0.0f : a; /* NaN stays NaN */
}
""",
}
