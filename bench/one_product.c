/* One matrix product, for mca_arm.py to follow: ISA KERNEL KIND COLUMNS TOKENS, of 64 rows. */
#include "../native/tests/testing.h"

int main(int argc, char **argv) {
    CHECK(argc == 6);
    uint64_t seed = 1;
    int64_t rows = 64, cols = atoi(argv[4]), n = atoi(argv[5]);
    int half = strcmp(argv[3], "half") == 0;
    int32_t kind = strcmp(argv[3], "int8") == 0 ? EDB_INT8 : EDB_PAIRS;
    edb_matrix matrix = random_matrix(&seed, kind, 1, rows, cols);
    if (half) add_half(&seed, &matrix, 1);
    float *x = random_floats(&seed, n * cols), *out = random_floats(&seed, n * rows);
    multiply(new_context(argv[1], argv[2], NULL), &matrix, x, out, n, 0);
    return 0;
}
