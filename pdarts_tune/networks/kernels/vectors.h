/* What cells are made of, on images with channels last: depthwise convolutions, 1x1 products, their gradients, pools.

   REAL is float or double. Nothing but vector extensions, which GCC and Clang translate for x86-64 and arm64. A vector has L
   numbers. Where rows of pixels are contiguous, a vector may span pixels: what each channel is multiplied by is then written
   several times, up to a period P, the least common multiple of L and the channels. Stores are exact. Loads may go up to a vector
   beyond the last number, so all buffers but the two inputs end in as much room. */
#if defined(__x86_64__) && !defined(__clang__)
#pragma GCC target("tune=haswell") /* elsewhere GCC 12 loads a weight at each of its uses: 40 in place of 49 products a nanosecond */
#endif
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX__)
#define VECTOR 32
#else
#define VECTOR 16
#endif
enum { L = VECTOR / sizeof(REAL), MOST = 49 };
typedef REAL V __attribute__((vector_size(VECTOR), aligned(sizeof(REAL)), may_alias));
typedef double D __attribute__((vector_size(8 * VECTOR / sizeof(REAL)), aligned(8), may_alias));
typedef __typeof__((V){0} < (V){0}) I;  /* integers as wide as the numbers */
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define UP(n) (((n) + L - 1) / L * L)

INLINE V ld(const REAL *p) { return *(const V *)p; }
INLINE void st(REAL *p, V v) { *(V *)p = v; }
INLINE V all(REAL x) { return x - (V){0}; } /* not a sum: compilers must keep one, for the sake of -0 */
INLINE V choose(I c, V a, V b) { return (V)((c & (I)a) | (~c & (I)b)); }
INLINE V keep(V g, V x) { return (V)((I)g & ~(I)(x <= 0)); } /* g where x is positive; not a number stays so */
INLINE V relu(V x) { return keep(x, x); }
INLINE V some(const REAL *p, long m) { /* the first m numbers, then zeros */
    if (m >= L) return ld(p);
    V v = {0};
    memcpy(&v, p, m * sizeof(REAL));
    return v;
}
INLINE void put(REAL *p, V v, long m) { /* stores the first m numbers */
    if (m >= L) { st(p, v); return; }
    const REAL *q = (const REAL *)&v;
    UNROLL for (int half = L / 2; half; half /= 2)
        if (m & half) { memcpy(p, q, half * sizeof(REAL)); p += half; q += half; }
}
/* Blocks are too short for the processor to see what comes next. */
INLINE void fetch(const REAL *p, long n) { for (long i = 0; i < n; i += 64 / sizeof(REAL)) __builtin_prefetch(p + i, 0, 2); }
INLINE void fetch_to_write(REAL *p, long n) { for (long i = 0; i < n; i += 64 / sizeof(REAL)) __builtin_prefetch(p + i, 1, 2); }
INLINE void add_up(double *sum, V v) { *(D *)sum += __builtin_convertvector(v, D); }
/* An address as a distance: sums of images in different buffers use the same code as the pixels around a pixel. */
INLINE const REAL *at(const REAL *p, intptr_t away) { return (const REAL *)((intptr_t)p + away * (intptr_t)sizeof(REAL)); }

/* ------------------------------------------------------------------------------------------------ sums of shifted images */

/* How far away what is summed is. Where a kernel is known, it is a square of pixels, row by row: the next ones are a pixel on. */
typedef struct { long n, kernel, dilation; intptr_t at[MOST]; } taps;

INLINE void tile(const int R, const int T, const taps *k, const REAL *w, long wrow, const REAL *bias,
                 const REAL *s, long srow, long sstep, REAL *d, long drow, long dstep, int add, long m) {
    V a[8];
    const V start = bias ? ld(bias) : (V){0};
    const long away[4] = {0, sstep, 2 * sstep, 3 * sstep};
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int t = 0; t < T; t++)
        a[r * T + t] = add ? (V)(ld(d + r * drow + t * dstep) + start) : start;
    for (long j = 0; j < k->n; j++, w += wrow) {
        V x = ld(w);
        const REAL *p = at(s, k->at[j]), *q = p + 4 * sstep; /* two bases: what the processor can address without sums */
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int t = 0; t < T; t++)
            a[r * T + t] += ld((t < 4 ? p : q) + r * srow + away[t % 4]) * x;
    }
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int t = 0; t < T; t++)
        put(d + r * drow + t * dstep, a[r * T + t], m);
}

/* Eight outputs of a square kernel, G pixels apart: a pixel is loaded once for all taps of a row that read it. */
INLINE void window(const int K, const int D, const int G, const taps *k, const REAL *w, long wrow, const REAL *bias,
                   const REAL *s, long C, REAL *d, long dstep, int add) {
    V a[8], x[5];
    const V start = bias ? ld(bias) : (V){0};
    UNROLL for (int t = 0; t < 8; t++) a[t] = add ? (V)(ld(d + t * dstep) + start) : start;
    UNROLL for (int i = 0; i < K; i++) {
        const REAL *p = at(s, k->at[i * K]);
        UNROLL for (int j = 0; j < K; j++, w += wrow) x[j] = ld(w);
        UNROLL for (int u = 0; u <= 7 * G + (K - 1) * D; u++, p += C)
            UNROLL for (int j = 0; j < K; j++)
                if (u >= j * D && (u - j * D) % G == 0 && (u - j * D) / G < 8) a[(u - j * D) / G] += ld(p) * x[j];
    }
    UNROLL for (int t = 0; t < 8; t++) st(d + t * dstep, a[t]);
}

/* d (+)= bias + the sum over taps of what is that far away from s, times a weight a channel. `w` has a row of P for each tap. */
static void apply(const taps *k, const REAL *w, const REAL *bias, const REAL *s, long srow, long sstep,
                  REAL *d, long drow, long dstep, long rows, long pixels, long C, long P, int add) {
    const int flat = sstep == C && dstep == C;
    const long full = flat ? pixels * C / P : pixels, rest = flat ? pixels * C % P : 0, width = flat ? P : C;
    const long ss = flat ? P : sstep, ds = flat ? P : dstep, whole = width / L * L;
#define TILE(R, T, x, b, m) \
    tile(R, T, k, w + (b), P, bias ? bias + (b) : 0, sy + (x) * ss + (b), srow, ss, dy + (x) * ds + (b), drow, ds, add, m)
    for (long y = 0; y < rows;) {
        const REAL *sy = s + y * srow;
        REAL *dy = d + y * drow;
        long left = rows - y, x = 0;
        int R = 1;
        if (full >= 4 && full < 8 && left >= 2) {
            R = 2, x = 4;
            for (long b = 0; b < whole; b += L) TILE(2, 4, 0, b, L);
        } else if (full >= 2 && full < 4 && left >= 4) {
            R = 4, x = 2;
            for (long b = 0; b < whole; b += L) TILE(4, 2, 0, b, L);
        }
        for (int r = 0; r < R; r++, sy += srow, dy += drow) {
            long i = x;
#define WINDOWS(K, D, G)                                                                                             \
            if (k->kernel == K && k->dilation == D && ss == G * C)                                                    \
                for (; i + 8 <= full; i += 8) for (long b = 0; b < whole; b += L)                                     \
                    window(K, D, G, k, w + b, P, bias ? bias + b : 0, sy + i * ss + b, C, dy + i * ds + b, ds, add);
            WINDOWS(3, 1, 1) WINDOWS(3, 1, 2) WINDOWS(3, 2, 1) WINDOWS(3, 2, 2)
            WINDOWS(5, 1, 1) WINDOWS(5, 1, 2) WINDOWS(5, 2, 1) WINDOWS(5, 2, 2)
#undef WINDOWS
            for (; i + 8 <= full; i += 8) for (long b = 0; b < whole; b += L) TILE(1, 8, i, b, L);
            if (i + 4 <= full) { for (long b = 0; b < whole; b += L) TILE(1, 4, i, b, L); i += 4; }
            for (; i < full; i++) for (long b = 0; b < whole; b += L) TILE(1, 1, i, b, L);
            if (whole < width) for (i = 0; i < full; i++) TILE(1, 1, i, whole, width - whole);
            for (long b = 0; b < rest; b += L) TILE(1, 1, full, b, MIN((long)L, rest - b));
        }
        y += R;
    }
#undef TILE
}

INLINE void weight_tile(const int G, const intptr_t *away, REAL *acc, long P, const REAL *s, long srow, long sstep,
                        const REAL *g, long grow, long gstep, long rows, long count) {
    V a[9];
    UNROLL for (int i = 0; i < G; i++) a[i] = ld(acc + i * P);
    for (long y = 0; y < rows; y++) {
        const REAL *p[9], *q = g + y * grow;
        UNROLL for (int i = 0; i < G; i++) p[i] = at(s + y * srow, away[i]);
        for (long x = 0, o = 0; x < count; x++, o += sstep, q += gstep) {
            V v = ld(q);
            UNROLL for (int i = 0; i < G; i++) a[i] += ld(p[i] + o) * v;
        }
    }
    UNROLL for (int i = 0; i < G; i++) st(acc + i * P, a[i]);
}

/* The same for the gradients of R rows of a square kernel, from four outputs at a time. */
INLINE void weight_window(const int K, const int D, const int G, const int R, const intptr_t *away, REAL *acc, long P, const REAL *s,
                          long srow, long C, const REAL *g, long grow, long gstep, long rows, long count) {
    V a[10], v[4];
    UNROLL for (int i = 0; i < R * K; i++) a[i] = ld(acc + i * P);
    for (long y = 0; y < rows; y++) {
        const REAL *p[3], *q = g + y * grow;
        UNROLL for (int r = 0; r < R; r++) p[r] = at(s + y * srow, away[r * K]);
        for (long x = 0; x < count; x += 4, q += 4 * gstep) {
            UNROLL for (int t = 0; t < 4; t++) v[t] = ld(q + t * gstep);
            UNROLL for (int r = 0; r < R; r++) {
                const REAL *from = p[r];
                UNROLL for (int u = 0; u <= 3 * G + (K - 1) * D; u++, from += C)
                    UNROLL for (int j = 0; j < K; j++)
                        if (u >= j * D && (u - j * D) % G == 0 && (u - j * D) / G < 4) a[r * K + j] += ld(from) * v[(u - j * D) / G];
                p[r] += 4 * G * C;
            }
        }
    }
    UNROLL for (int i = 0; i < R * K; i++) st(acc + i * P, a[i]);
}

/* The gradient of `apply`'s weights from that of its output: adds to `acc`, a row of P for each tap, an odd number squared.
   Eight pixels of zeros follow each row of g. */
static void weight_grad(const taps *k, REAL *acc, const REAL *s, long srow, long sstep, const REAL *g, long grow, long gstep,
                        long rows, long pixels, long C, long P) {
    const int flat = sstep == C && gstep == C;
    const long count = flat ? (pixels * C + P - 1) / P : pixels, ss = flat ? P : sstep, gs = flat ? P : gstep;
    for (long b = 0; b < (flat ? P : C); b += L) {
        long j = 0;
#define ROWS(K, D, G, R)                                                                                             \
        for (; k->kernel == K && k->dilation == D && ss == G * C && j + R * K <= k->n; j += R * K)                   \
            weight_window(K, D, G, R, k->at + j, acc + j * P + b, P, s + b, srow, C, g + b, grow, gs, rows, count);
        ROWS(3, 1, 1, 3) ROWS(3, 1, 2, 3) ROWS(3, 2, 1, 3) ROWS(3, 2, 2, 3)
        ROWS(5, 1, 1, 2) ROWS(5, 1, 2, 2) ROWS(5, 2, 1, 2) ROWS(5, 2, 2, 2)
        ROWS(5, 1, 1, 1) ROWS(5, 1, 2, 1) ROWS(5, 2, 1, 1) ROWS(5, 2, 2, 1)
#undef ROWS
        if (j == 0) weight_tile(9, k->at, acc + b, P, s + b, srow, ss, g + b, grow, gs, rows, count), j = 9;
        for (; j < k->n; j += 8) weight_tile(8, k->at + j, acc + j * P + b, P, s + b, srow, ss, g + b, grow, gs, rows, count);
    }
}

/* ------------------------------------------------------------------------------------------------------------- products */

INLINE void product_tile(const int T, const int B, const REAL *s, long spx, long k, const REAL *w, long wrow, REAL *d, long dpx, long m) {
    V a[12], x[3];
    UNROLL for (int i = 0; i < T * B; i++) a[i] = (V){0};
    for (long i = 0; i < k; i++, w += wrow, s++) {
        UNROLL for (int b = 0; b < B; b++) x[b] = ld(w + b * L);
        UNROLL for (int t = 0; t < T; t++) {
            V y = all((s + t / 3 * 3 * spx)[t % 3 * spx]); /* bases three pixels apart, as in `tile` */
            UNROLL for (int b = 0; b < B; b++) a[t * B + b] += y * x[b];
        }
    }
    UNROLL for (int t = 0; t < T; t++) UNROLL for (int b = 0; b < B; b++) put(d + t * dpx + b * L, a[t * B + b], b < B - 1 ? L : m);
}

/* d (count, cols) = s (count, k) w (k, cols), rows of w padded with zeros. */
static void product(const REAL *s, long spx, long k, const REAL *w, long wrow, REAL *d, long dpx, long cols, long count) {
    for (long o = 0; o < cols;) {
        const long vectors = (cols - o + L - 1) / L, B = vectors == 2 || vectors > 3 ? 2 : vectors, m = MIN((long)L, cols - o - (B - 1) * L);
        long x = 0;
#define TILES(T, B)                                                                               \
    for (; x + T <= count && !(T == 6 && count - x == 8); x += T)                                 \
        product_tile(T, B, s + x * spx, spx, k, w + o, wrow, d + x * dpx + o, dpx, m);
        if (B == 1) { TILES(8, 1) TILES(1, 1) }
        else if (B == 2) { TILES(6, 2) TILES(4, 2) TILES(1, 2) }
        else { TILES(4, 3) TILES(1, 3) }
#undef TILES
        o += B * L;
    }
}

INLINE void outer_tile(const int T, const int B, const REAL *g, long gpx, const REAL *d, long dpx, long count, REAL *m, long mrow) {
    V a[12], x[3];
    UNROLL for (int t = 0; t < T; t++) UNROLL for (int b = 0; b < B; b++) a[t * B + b] = ld(m + t * mrow + b * L);
    for (long i = 0; i < count; i++, g += gpx, d += dpx) {
        UNROLL for (int b = 0; b < B; b++) x[b] = ld(d + b * L);
        UNROLL for (int t = 0; t < T; t++) {
            V y = all(g[t]);
            UNROLL for (int b = 0; b < B; b++) a[t * B + b] += y * x[b];
        }
    }
    UNROLL for (int t = 0; t < T; t++) UNROLL for (int b = 0; b < B; b++) st(m + t * mrow + b * L, a[t * B + b]);
}

/* m (outs, ins) += g' d, sums over `count` pixels. Rows of m are padded; what is there means nothing. */
static void outer(const REAL *g, long gpx, long outs, const REAL *d, long dpx, long ins, long count, REAL *m, long mrow) {
    for (long c = 0; c < ins;) {
        const long vectors = (ins - c + L - 1) / L, B = vectors == 2 || vectors > 3 ? 2 : vectors;
        long o = 0;
#define TILES(T, B) for (; o + T <= outs; o += T) outer_tile(T, B, g + o, gpx, d + c, dpx, count, m + o * mrow + c, mrow);
        if (B == 1) { TILES(8, 1) TILES(4, 1) TILES(1, 1) }
        else if (B == 2) { TILES(6, 2) TILES(4, 2) TILES(1, 2) }
        else { TILES(4, 3) TILES(1, 3) }
#undef TILES
        c += B * L;
    }
}

/* ----------------------------------------------------------------------------------------------------------- elementwise */

/* d = a g + b z + c, coefficients with period P. */
static void combine(const REAL *g, const REAL *z, const REAL *a, const REAL *b, const REAL *c, REAL *d, long count, long P) {
    for (long p = 0; p < P; p += L) {
        const V a_ = ld(a + p), b_ = ld(b + p), c_ = ld(c + p);
        long i = p;
        for (; i + 3 * P + L <= count; i += 4 * P)
            UNROLL for (int t = 0; t < 4; t++) st(d + i + t * P, a_ * ld(g + i + t * P) + (b_ * ld(z + i + t * P) + c_));
        for (; i < count; i += P) put(d + i, a_ * ld(g + i) + (b_ * ld(z + i) + c_), count - i);
    }
}

/* Rows of scale x + shift, or of its positive part, to rows elsewhere; without a scale, of x. */
static void copy(const REAL *x, long xrow, const REAL *scale, const REAL *shift, int positive, REAL *d, long drow, long rows,
                 long count, long P) {
    for (long y = 0; y < rows; y++, x += xrow, d += drow)
        for (long p = 0; p < P; p += L) {
            const V a = scale ? ld(scale + p) : all(1), b = scale ? ld(shift + p) : all(0);
            for (long i = p; i < count; i += P) {
                V v = a * ld(x + i) + b;
                put(d + i, positive ? relu(v) : v, count - i);
            }
        }
}

/* Adds f times the sums of g and of g z to sum (2, P). A few numbers at a time, so that each is fetched once. */
static void dots(const REAL *g, const REAL *z, long count, double f, double *sum, long P) {
    for (long start = 0, end; start < count; start = end) {
        end = MIN(count, start + MAX(1, 2048 / P) * P);
        for (long p = 0; p < P; p += L) {
            V s[4] = {{0}}, q[4] = {{0}};
            long i = start + p;
            for (; i + 3 * P + L <= end; i += 4 * P)
                UNROLL for (int t = 0; t < 4; t++) { V v = ld(g + i + t * P); s[t] += v; q[t] += v * ld(z + i + t * P); }
            for (; i < end; i += P) { V v = some(g + i, end - i); s[0] += v; q[0] += v * some(z + i, end - i); }
            *(D *)(sum + p) += f * __builtin_convertvector((s[0] + s[1]) + (s[2] + s[3]), D);
            *(D *)(sum + P + p) += f * __builtin_convertvector((q[0] + q[1]) + (q[2] + q[3]), D);
        }
    }
}

/* d = (d, or 0) + g where y is positive; rows. Then adds the sums of d and of d z to sum (2, P). */
static void mask(REAL *d, const REAL *g, int add, const REAL *y, long yrow, const REAL *z, long rows, long count, double *sum, long P) {
    for (long p = 0; p < P; p += L) {
        V s[2] = {{0}}, q[2] = {{0}};
        for (long r = 0; r < rows; r++) {
            REAL *to = d + r * count;
            const REAL *from = g + r * count, *by = y + r * yrow, *with = z + r * count;
            long i = p;
            if (sum)
                for (; i + P + L <= count; i += 2 * P) UNROLL for (int t = 0; t < 2; t++) {
                    V v = keep(ld(from + i + t * P), ld(by + i + t * P));
                    st(to + i + t * P, v);
                    s[t] += v, q[t] += v * ld(with + i + t * P);
                }
            else
                for (; i + L <= count; i += P) { V v = keep(ld(from + i), ld(by + i)); st(to + i, add ? (V)(v + ld(to + i)) : v); }
            for (; i < count; i += P) {
                V v = keep(some(from + i, count - i), ld(by + i));
                if (add) v += some(to + i, count - i);
                put(to + i, v, count - i);
                if (sum) { s[0] += v; q[0] += v * some(with + i, count - i); }
            }
        }
        if (sum) { add_up(sum + p, s[0] + s[1]); add_up(sum + P + p, q[0] + q[1]); }
    }
}

/* ----------------------------------------------------------------------------------------------------------------- pools */

/* Calls for each vector of output pixels: `m` numbers, at `so` in the source and `to` in the destination. */
#define VECTORS(rows, pixels, C, srow, sstep, drow, dstep, ...)                                                               \
    do {                                                                                                                      \
        const int flat_ = (sstep) == (C) && (dstep) == (C);                                                                   \
        for (long y_ = 0; y_ < (rows); y_++)                                                                                  \
            for (long x_ = 0; x_ < (flat_ ? 1 : (pixels)); x_++)                                                              \
                for (long b_ = 0, n_ = flat_ ? (pixels) * (C) : (C); b_ < n_; b_ += L) {                                      \
                    const long m = n_ - b_, so = y_ * (srow) + x_ * (sstep) + b_, to = y_ * (drow) + x_ * (dstep) + b_;       \
                    __VA_ARGS__                                                                                                   \
                }                                                                                                             \
    } while (0)

/* The maximum over taps, and (in `which`, if given) the number of the first tap that has it. */
static void max_pool(const taps *k, const REAL *s, long srow, long sstep, REAL *d, REAL *which, long drow, long rows, long pixels, long C) {
    if (which)
        VECTORS(rows, pixels, C, srow, sstep, drow, C, {
            V best = ld(at(s + so, k->at[0])), index = {0};
            for (long j = 1; j < k->n; j++) {
                V v = ld(at(s + so, k->at[j]));
                I c = ~(I)(v <= best);
                best = choose(c, v, best);
                index = choose(c, all((REAL)j), index);
            }
            put(which + to, index, m);
        });
    else
        VECTORS(rows, pixels, C, srow, sstep, drow, C, {
            V best = ld(at(s + so, k->at[0]));
            for (long j = 1; j < k->n; j++) {
                V v = ld(at(s + so, k->at[j]));
                best = choose(~(I)(v <= best), v, best);
            }
            put(d + to, best, m);
        });
}

/* Adds to each pixel the gradients g of the windows whose maximum it is. */
static void max_pool_grad(const taps *k, const REAL *number, const REAL *g, const REAL *which, long srow, REAL *d, long drow, long dstep,
                          long rows, long pixels, long C) {
    VECTORS(rows, pixels, C, srow, C, drow, dstep, {
        V total = some(d + to, m);
        for (long j = 0; j < k->n; j++)
            total += (V)((I)ld(at(g + so, k->at[j])) & (I)(ld(at(which + so, k->at[j])) == number[j]));
        put(d + to, total, m);
    });
}

/* An average pool divides by the pixels of a window that are inside the image: 9 / that many, at the border. */
static void border(REAL *d, long drow, long rows, long pixels, long C, long stride, long height, long width) {
    for (long y = 0; y < rows; y++) {
        const long high = 3 - (y == 0) - (stride * y + 1 >= height);
        for (long x = 0; x < pixels; x += (high == 3 && x == 0 && pixels > 2) ? pixels - 1 : 1) {
            const long wide = 3 - (x == 0) - (stride * x + 1 >= width);
            if (high * wide < 9) for (long c = 0; c < C; c++) d[y * drow + x * C + c] *= (REAL)9 / (REAL)(high * wide);
        }
    }
}
