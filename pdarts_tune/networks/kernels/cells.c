/* Whole cells: forward and backward, one call each. `function.py` fills the tables that are read here; every field has 8 bytes.

   A cell has two inputs, states 0 and 1 after their preprocessing, and nodes, which are states 2 and on. A node is a sum of
   terms, one an operation: its output, normalised, times a mixing weight (search) or a drop path factor an image (evaluation).
   What is used:

   - A term is `scale * z + shift` a channel, where z is what a convolution or pool gave and scale and shift are the norm, so the
     norm of batch statistics has no output in memory: readers of z apply it. States 0 and 1 are kept as z, too.
   - Backward of a norm and a weight w follows from two sums a channel, s0 of the gradient g and s1 of g z. The gradient of z is
     `a g + b z + c`; those of w, gamma and beta are sums of s0 and s1. So the gradient of w costs nothing.
   - Pools of a state do not depend on the edge, and `none` adds nothing: it is not in the tables.
   - A convolution is one or two halves: depthwise convolution d of a ReLU, product z = d W, norm. z is kept for backward, d is
     computed again: a depthwise convolution costs less than a product where there are many channels.
   - With `recompute` only the z of states 0 and 1 are kept; the rest is computed again, a state at a time. */
#include <setjmp.h>
#include <stdlib.h>

#include "vectors.h"

enum { INPUT, MAX_POOL, AVERAGE_POOL, SKIP, REDUCE, SEPARABLE, DILATED };
enum { BORDER = 4, BLOCK = 2048, FEW = 64 }; /* zeros around images; a block, which stays in the cache: numbers, or pixels if many */

typedef struct { REAL *gamma, *beta, *of_gamma, *of_beta, *mean, *var; int64_t *batches; } norm; /* gamma may be missing */
typedef struct {
    int64_t source, node, kind, kernel, mix, factor, mask; /* mix: a position; factor, mask: a row, or -1 */
    const REAL *weight[4]; /* depthwise, product; the same of the last half. Factorized reduction: [2] is its second product */
    REAL *of_weight[4], *z[2]; /* z: what is kept for backward, of all images; missing with recompute */
    norm norms[2]; /* of the first of two halves, of the last one; no norm: mean is missing */
} operation;
typedef struct { const REAL *x; REAL *of_x; int64_t node, image, nodes, channels, height, width, halves; } input;
typedef struct {
    int64_t batch, channels, height, width, in_height, in_width, stride, nodes, operations, training, recompute, threads;
    double eps, momentum, kept;
    input inputs[2];
    const REAL *mixing, *factors; /* missing: all ones */
    const uint8_t *masks;
    REAL *of_mixing, *nodes_out, *of_nodes, *stats;
    const operation *op;
} cell;

/* Where the pixels are that a kernel reads, and the other way round: which outputs read a pixel. With stride 2 the latter differ
   between pixels of even and odd rows and columns. */
typedef struct { long kernel, dilation, stride, order[MOST], first[4]; taps forward, back[4]; } shape;

typedef struct { /* half a convolution; of pools and skip-connects only norm and sums */
    const shape *shape; /* missing: no depthwise convolution */
    const norm *norm;
    const REAL *depthwise, *weight, *weight2, *back; /* back: rows of the weight, padded */
    REAL *of_depthwise, *of_weight, *of_weight2;
    long in, height, width;                                          /* `in`: inputs of the product */
    REAL *z, *taps, *back_taps, *across, *sum_taps, *sum_back; /* z: all images; sums of gradients, one a thread */
    REAL *mean, *rstd, *scale, *shift, *a, *b, *c;
    double *sum;
} half;

typedef struct chunk { struct chunk *before; } chunk;
typedef struct {
    const cell *c;
    half *halves; /* two an operation */
    shape *shapes;
    long C, P, image, in_image, count;
    REAL *pools[2], **dy, *of_state; /* pools of the present state */
    atomic_long arrived, phase, started;
    chunk *chunks;
    char *next;
    size_t left;
    jmp_buf failed;
} plan;

typedef struct { /* a thread and its scratch memory */
    plan *p;
    long id, first, last;
    REAL *x[2], *large[2], *plain[2], *y, *g, *which, *of_relu, *d, *dz, *of_d, *masked, *row, *rows, *ninths;
} worker;

/* ------------------------------------------------------------------------------------------------------------------ memory */

static void *take(plan *p, size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    if (p->left < bytes) {
#ifdef __SANITIZE_ADDRESS__
        size_t size = bytes; /* each buffer alone, so that what is read or written beside it is found */
#else
        size_t size = MAX(bytes, (size_t)1 << 18);
#endif
        chunk *new = malloc(size + 128);
        if (!new) longjmp(p->failed, 1);
        new->before = p->chunks;
        p->chunks = new;
        p->next = (char *)(((uintptr_t)new + 127) / 64 * 64);
        p->left = size;
    }
    void *found = p->next;
    p->next += bytes;
    p->left -= bytes;
    return found;
}
static REAL *numbers(plan *p, long n) { return take(p, (n + p->P + L) * sizeof(REAL)); }
static void clear(REAL *x, long n) { memset(x, 0, n * sizeof(REAL)); }
static REAL *filled(plan *p, long n, REAL value) {
    REAL *x = numbers(p, n);
    for (long i = 0; i < n + p->P + L; i++) x[i] = value; /* also behind it: what is read there is multiplied by zero */
    return x;
}

/* -------------------------------------------------------------------------------------------------------------------- plan */

static const half *last(const plan *p, long o) { return p->halves + 2 * o + 1; }
static long stride_of(const plan *p, long s) { return s < 2 ? p->c->stride : 1; }
static long row_of(const plan *p, long stride) { return ((stride == 2 ? p->c->in_width : p->c->width) + 2 * BORDER) * p->C; }

static const shape *find_shape(plan *p, long kernel, long dilation, long stride) {
    shape *s = p->shapes;
    for (; s->kernel; s++) if (s->kernel == kernel && s->dilation == dilation && s->stride == stride) return s;
    s->kernel = s->forward.kernel = kernel, s->dilation = s->forward.dilation = dilation, s->stride = stride;
    if (stride == 1) s->back->kernel = kernel, s->back->dilation = dilation;
    const long reach = dilation * (kernel / 2), row = row_of(p, stride), back_row = row_of(p, 1);
    for (long i = 0; i < kernel; i++) for (long j = 0; j < kernel; j++)
        s->forward.at[s->forward.n++] = (i * dilation - reach) * row + (j * dilation - reach) * p->C;
    long used = 0;
    for (long q = 0; q < stride * stride; q++) {
        s->first[q] = used;
        for (long i = kernel - 1; i >= 0; i--) for (long j = kernel - 1; j >= 0; j--) {
            const long y = q / stride + reach - i * dilation, x = q % stride + reach - j * dilation;
            if (y % stride || x % stride) continue;
            s->back[q].at[s->back[q].n++] = y / stride * back_row + x / stride * p->C;
            s->order[used++] = i * kernel + j;
        }
    }
    return s;
}

/* The weight of a product: (out, in). A factorized reduction is two, of even and of odd pixels side by side: half of it is zero. */
static REAL weight_at(const half *h, long C, long o, long i) {
    if (!h->weight2) return h->weight[o * h->in + i];
    const long half_in = h->in / 2, upper = C / 2;
    if (o < upper) return i < half_in ? h->weight[o * half_in + i] : 0;
    return i < half_in ? 0 : h->weight2[(o - upper) * half_in + i - half_in];
}

static void plan_half(plan *p, half *h, const operation *op, int is_last, const shape *s, long in, int backward) {
    const long C = p->C, P = p->P, threads = p->c->threads, rows = UP(in);
    h->shape = s, h->in = in;
    h->weight = op->weight[2 * is_last + 1], h->of_weight = op->of_weight[2 * is_last + 1];
    if (s) {
        const long n = s->forward.n;
        h->depthwise = op->weight[2 * is_last], h->of_depthwise = op->of_weight[2 * is_last];
        h->taps = numbers(p, n * P);
        for (long j = 0; j < n; j++) for (long i = 0; i < P; i++)
            h->taps[j * P + i] = i < C ? h->depthwise[i * n + j] : h->taps[j * P + i - C];
        if (backward) {
            h->back_taps = numbers(p, n * P);
            for (long j = 0; j < n; j++) memcpy(h->back_taps + j * P, h->taps + s->order[j] * P, P * sizeof(REAL));
            h->sum_taps = filled(p, threads * n * P, 0);
        }
    } else
        h->weight2 = op->weight[2], h->of_weight2 = op->of_weight[2];
    if (!backward || p->c->recompute) {
        const long row = UP(C);
        h->across = numbers(p, in * row);
        if (row > C || h->weight2) clear(h->across, in * row);
        for (long o = 0; o < C; o++)
            if (h->weight2) for (long i = 0; i < in; i++) h->across[i * row + o] = weight_at(h, C, o, i);
            else for (long i = 0; i < in; i++) h->across[i * row + o] = h->weight[o * in + i];
    }
    if (backward) {
        if (rows == in && !h->weight2) h->back = h->weight; /* it is as it should be */
        else {
            REAL *back = numbers(p, C * rows);
            for (long o = 0; o < C; o++) for (long i = 0; i < rows; i++) back[o * rows + i] = i < in ? weight_at(h, C, o, i) : 0;
            h->back = back;
        }
        h->sum_back = filled(p, threads * C * rows, 0);
    }
}

/* The scale and shift of a norm whose statistics are known. */
static void open_norm(const plan *p, half *h) {
    for (long i = 0, c = 0; i < p->P; i++, c = c + 1 == p->C ? 0 : c + 1) {
        const double gamma = h->norm->gamma ? h->norm->gamma[c] : 1, beta = h->norm->gamma ? h->norm->beta[c] : 0;
        h->scale[i] = h->norm->mean ? (REAL)(gamma * h->rstd[c]) : 1;
        h->shift[i] = h->norm->mean ? (REAL)(beta - gamma * h->mean[c] * h->rstd[c]) : 0;
    }
}

/* Where each z is. With `recompute` those of one state take the place of another's; pools are always computed again. */
static void lay_out(plan *p, long units) {
    const cell *c = p->c;
    const long unit = c->batch * p->image;
    REAL **own = take(p, units * sizeof(REAL *));
    long used = 0, made = 0;
    for (int k = 0; k < 2; k++) p->pools[k] = 0;
    for (long o = 0; o < c->operations; o++) {
        const operation *op = c->op + o;
        half *h = p->halves + 2 * o;
        const long kind = op->kind;
        if (o && op->source != op[-1].source) used = 0;
        for (int i = 0; i < 2; i++) h[i].z = op->z[i];
        if (kind == MAX_POOL || kind == AVERAGE_POOL) {
            REAL **pool = p->pools + (kind == AVERAGE_POOL);
            if (!*pool) *pool = numbers(p, unit);
            h[1].z = *pool;
        }
        for (int i = kind != SEPARABLE; i < 2 && c->recompute && kind >= REDUCE; i++) {
            if (used == made) own[made++] = numbers(p, unit);
            h[i].z = own[used++];
        }
    }
}

static void make_plan(plan *p, const cell *c, int backward) {
    const long C = c->channels, ops = c->operations;
    p->c = c, p->C = C, p->P = C;
    while (p->P % L) p->P += C;
    p->image = c->height * c->width * C, p->in_image = c->in_height * c->in_width * C, p->count = c->batch * c->height * c->width;
    p->halves = take(p, 2 * ops * sizeof(half)), p->shapes = take(p, 16 * sizeof(shape));
    memset(p->halves, 0, 2 * ops * sizeof(half)), memset(p->shapes, 0, 16 * sizeof(shape));
    lay_out(p, 2 * ops);
    for (long o = 0; o < ops; o++) {
        const operation *op = c->op + o;
        const long stride = op->kind == INPUT ? 1 : stride_of(p, op->source);
        half *h = p->halves + 2 * o + 1;
        for (int i = 0; i < 2; i++) {
            half *q = h - 1 + i;
            q->norm = op->norms + i, q->mean = c->stats + (2 * o + i) * 2 * C, q->rstd = q->mean + C;
            q->height = op->kind == INPUT ? c->in_height : c->height, q->width = op->kind == INPUT ? c->in_width : c->width;
            if (i == 0 && op->kind != SEPARABLE) continue;
            q->scale = numbers(p, 5 * p->P), q->shift = q->scale + p->P;
            q->a = q->shift + p->P, q->b = q->a + p->P, q->c = q->b + p->P;
            q->sum = take(p, c->threads * 2 * p->P * sizeof(double));
            memset(q->sum, 0, c->threads * 2 * p->P * sizeof(double));
            if (backward && op->kind != SKIP) open_norm(p, q);
        }
        if (op->kind == INPUT) {
            const input *in = c->inputs + op->source;
            plan_half(p, h, op, 1, 0, in->nodes * in->channels * in->halves, backward);
        } else if (op->kind == REDUCE)
            plan_half(p, h, op, 1, 0, 2 * C, backward);
        else if (op->kind == DILATED)
            plan_half(p, h, op, 1, find_shape(p, op->kernel, 2, stride), C, backward);
        else if (op->kind == SEPARABLE) {
            plan_half(p, h - 1, op, 0, find_shape(p, op->kernel, 1, stride), C, backward);
            plan_half(p, h, op, 1, find_shape(p, op->kernel, 1, 1), C, backward);
        } else if (op->kind != SKIP)
            find_shape(p, 3, 1, stride);
    }
    if (!backward) return;
    p->dy = take(p, ops * sizeof(REAL *)), p->of_state = numbers(p, c->batch * p->in_image);
    for (long o = 2, used = 0, made = 0; o < ops; o++) { /* of the separable convolutions of a state */
        if (c->op[o].source != c->op[o - 1].source) used = 0;
        if (c->op[o].kind == SEPARABLE && used++ == made) p->dy[made++] = numbers(p, c->batch * p->image);
    }
}

static void plan_worker(worker *w, plan *p, long id) {
    const cell *c = p->c;
    const long behind = 8 * p->C; /* what outputs behind a row would read; their gradients are zero */
    const long size = (c->height + 2 * BORDER) * row_of(p, 1) + behind, in_size = (c->in_height + 2 * BORDER) * row_of(p, c->stride) + behind;
    long in = p->C;
    for (long o = 0; o < c->operations; o++) in = MAX(in, last(p, o)->in);
    const long block = BLOCK + (FEW + MAX(c->width, c->in_width)) * in;
    w->p = p, w->id = id;
    for (int i = 0; i < 2; i++) {
        if (i && c->stride == 1) { w->x[1] = w->x[0], w->large[1] = w->large[0], w->plain[1] = w->plain[0]; break; }
        w->x[i] = filled(p, i ? in_size : size, 0);
        w->large[i] = filled(p, i ? in_size : size, -INFINITY);
        w->plain[i] = filled(p, i ? in_size : size, 0);
    }
    w->y = filled(p, size, 0), w->g = filled(p, size, 0), w->which = filled(p, size, -1);
    w->of_relu = numbers(p, MAX(p->image, p->in_image)), w->masked = numbers(p, p->image);
    w->d = filled(p, block, 0), w->dz = filled(p, block, 0), w->of_d = filled(p, block, 0);
    w->row = numbers(p, p->P), w->rows = numbers(p, (c->operations + 2) * p->P);
    w->ninths = filled(p, 9 * p->P, (REAL)1 / 9);
}

/* ----------------------------------------------------------------------------------------------------------------- threads */

static void wait_for_all(worker *w) {
    plan *p = w->p;
    if (p->c->threads == 1) return;
    const long phase = atomic_load(&p->phase);
    if (atomic_fetch_add(&p->arrived, 1) == p->c->threads - 1) {
        atomic_store(&p->arrived, 0);
        atomic_store(&p->phase, phase + 1);
    } else
        while (atomic_load(&p->phase) == phase) sched_yield();
}
/* What follows is done by one thread when all have come here; the others wait. */
#define ALONE(w, ...) do { wait_for_all(w); if ((w)->id == 0) { __VA_ARGS__ } wait_for_all(w); } while (0)

static double *sums(worker *w, half *h) { return h->sum + w->id * 2 * w->p->P; }

static double *collect(plan *p, half *h) { /* adds up threads, and the several places of each channel */
    for (long t = 1; t < p->c->threads; t++) for (long i = 0; i < 2 * p->P; i++) h->sum[i] += h->sum[t * 2 * p->P + i];
    for (long i = p->C; i < p->P; i++) h->sum[i % p->C] += h->sum[i], h->sum[p->P + i % p->C] += h->sum[p->P + i];
    return h->sum;
}

/* ----------------------------------------------------------------------------------------------------------------- norms */

/* From the sums of z and its squares to scale and shift. */
static void settle(const plan *p, half *h, const double *sum, double count) {
    const norm *n = h->norm;
    const double momentum = p->c->momentum;
    for (long c = 0; c < p->C && n->mean; c++) {
        double mean = n->mean[c], var = n->var[c];
        if (p->c->training) {
            mean = sum[c] / count, var = MAX(sum[p->P + c] / count - mean * mean, 0);
            n->mean[c] = (REAL)((1 - momentum) * n->mean[c] + momentum * mean);
            n->var[c] = (REAL)((1 - momentum) * n->var[c] + momentum * var * count / (count - 1));
        }
        h->mean[c] = (REAL)mean, h->rstd[c] = (REAL)(1 / sqrt(var + p->c->eps));
    }
    if (n->mean && p->c->training) ++*n->batches;
    open_norm(p, h);
}

/* From s0 and s1 of a term with weight w to the gradients of w, gamma and beta, and to that of z: a g + b z + c. */
static void pull(plan *p, half *h, double weight, double count, const REAL *scale, const REAL *shift, REAL *of_mix) {
    collect(p, h);
    const norm *n = h->norm;
    double total = 0;
    for (long c = 0; c < p->C; c++) {
        const double s0 = h->sum[c], s1 = h->sum[p->P + c];
        double a = weight, b = 0, constant = 0;
        total += (scale ? scale[c] : 1) * s1 + (shift ? shift[c] : 0) * s0;
        if (n->mean) {
            const double rstd = h->rstd[c], along = rstd * (s1 - h->mean[c] * s0); /* sum of g and the normalised z */
            if (n->of_gamma) n->of_gamma[c] = (REAL)(weight * along), n->of_beta[c] = (REAL)(weight * s0);
            a = weight * rstd * (n->gamma ? n->gamma[c] : 1);
            if (p->c->training) b = -a * rstd * along / count, constant = -a * (s0 - h->mean[c] * rstd * along) / count;
        }
        for (long i = c; i < p->P; i += p->C) h->a[i] = (REAL)a, h->b[i] = (REAL)b, h->c[i] = (REAL)constant;
    }
    if (of_mix) *of_mix = (REAL)total;
}

/* ------------------------------------------------------------------------------------------------------------------ halves */

typedef struct { const REAL *x; REAL *of_x; long node, row, nodes, channels, height, width, halves; } view;

/* An input of a cell, image n; or, without one, what a factorized reduction reads. */
static view view_of(const worker *w, const operation *op, long n) {
    const plan *p = w->p;
    if (op->kind == INPUT) {
        const input *i = p->c->inputs + op->source;
        return (view){i->x + n * i->image, i->of_x ? i->of_x + n * i->image : 0, i->node, i->width * i->channels,
                      i->nodes, i->channels, i->height, i->width, i->halves};
    }
    const long row = row_of(p, 2);
    return (view){w->x[1] + BORDER * (row + p->C), w->of_relu, 0, row, 1, p->C, p->c->in_height, p->c->in_width, 2};
}

/* The ReLU of output pixels' inputs, side by side: of all nodes; in a factorized reduction even pixels, then odd ones. */
static void gather(const view *v, long y0, long y1, long pixels, REAL *d) {
    const long channels = v->channels, in = v->halves * v->nodes * channels, end = (v->height - 1) * v->row + v->width * channels;
    for (long h = 0; h < v->halves; h++) for (long k = 0; k < v->nodes; k++, d += channels) {
        const REAL *image = v->x + k * v->node;
        REAL *to = d;
        for (long y = y0; y < y1; y++) for (long x = 0; x < pixels; x++, to += in) {
            const long iy = v->halves * y + h, ix = v->halves * x + h, o = iy * v->row + ix * channels;
            const int inside = iy < v->height && ix < v->width; /* odd pixels of an odd size: zeros beyond the image */
            for (long c = 0; c < channels; c += L) {
                V value = {0};
                if (inside) value = relu(o + c + L <= end ? ld(image + o + c) : some(image + o + c, channels - c));
                put(to + c, value, channels - c);
            }
        }
    }
}

/* The way back: adds to what a factorized reduction read; to an input's gradient, where its ReLU d was positive. */
static void scatter(const view *v, long y0, long y1, long pixels, const REAL *g, const REAL *d, int is_input) {
    const long row = v->width * v->channels;
    for (long y = y0; y < y1; y++) for (long x = 0; x < pixels; x++)
        for (long h = 0; h < v->halves; h++) {
            const long iy = v->halves * y + h, ix = v->halves * x + h;
            REAL *s = v->of_x + iy * row + ix * v->channels;
            for (long k = 0; k < v->nodes; k++, s += v->node, d += v->channels, g += v->channels)
                if (iy < v->height && ix < v->width)
                    for (long c = 0; c < v->channels; c += L) {
                        const long m = v->channels - c;
                        put(s + c, is_input ? keep(ld(g + c), ld(d + c)) : (V)(ld(s + c) + ld(g + c)), m);
                    }
        }
}

/* Rows of the input of a half's product. */
static void read_rows(worker *w, const half *h, const REAL *s, const view *v, long y0, long y1) {
    const plan *p = w->p;
    if (!h->shape) { gather(v, y0, y1, h->width, w->d); return; }
    const long stride = h->shape->stride, row = row_of(p, stride);
    apply(&h->shape->forward, h->taps, 0, s + y0 * stride * row, stride * row, stride * p->C, w->d, h->width * p->C, p->C,
          y1 - y0, h->width, p->C, p->P, 0);
}
static long rows_at_once(const worker *w, const half *h) {
    return MAX(1, MAX(FEW, BLOCK / MAX(h->in, w->p->C)) / h->width);
}

/* z of image n. `s` is the first pixel inside a padded image, `v` what is read where there is no depthwise convolution. */
static void half_forward(worker *w, half *h, const REAL *s, const view *v, long n, int fresh) {
    const long C = w->p->C, step = rows_at_once(w, h);
    for (long y = 0, y1; y < h->height; y = y1) {
        y1 = MIN(y + step, h->height);
        const long pixels = (y1 - y) * h->width;
        REAL *z = h->z + (n * h->height + y) * h->width * C;
        fetch_to_write(z, pixels * C);
        read_rows(w, h, s, v, y, y1);
        product(w->d, h->in, h->in, h->across, UP(C), z, C, C, pixels);
        if (fresh) dots(z, z, pixels * C, 1, sums(w, h), w->p->P);
    }
}

/* From the gradient g of a term of image n to those of the weights, and to what `half_input_grad` needs, or to v's gradient. */
static void half_backward(worker *w, half *h, const REAL *s, const view *v, const REAL *g, const REAL *a, long n, int is_input) {
    const plan *p = w->p;
    const long C = p->C, step = rows_at_once(w, h), row = row_of(p, 1), in_rows = UP(h->in);
    const REAL *z = h->z + n * h->height * h->width * C;
    REAL *inside = w->g + BORDER * (row + C), *sum = h->sum_back + w->id * C * in_rows;
    for (long y = 0, y1; y < h->height; y = y1) {
        y1 = MIN(y + step, h->height);
        const long o = y * h->width * C, pixels = (y1 - y) * h->width;
        combine(g + o, z + o, a, h->b, h->c, w->dz, pixels * C, p->P);
        fetch(g + o + pixels * C, pixels * C), fetch(z + o + pixels * C, pixels * C); /* of the next rows */
        read_rows(w, h, s, v, y, y1);
        outer(w->dz, C, C, w->d, h->in, h->in, pixels, sum, in_rows);
        if (h->shape) {
            const long from = h->shape->stride * row_of(p, h->shape->stride);
            if (h->width < 32) { /* rows are too short for products */
                product(w->dz, C, C, h->back, in_rows, w->of_d, C, C, pixels);
                copy(w->of_d, h->width * C, 0, 0, 0, inside + y * row, row, y1 - y, h->width * C, p->P);
            } else
                for (long i = y; i < y1; i++)
                    product(w->dz + (i - y) * h->width * C, C, C, h->back, in_rows, inside + i * row, C, C, h->width);
            weight_grad(&h->shape->forward, h->sum_taps + w->id * h->shape->forward.n * p->P, s + y * from, from,
                        h->shape->stride * C, inside + y * row, row, C, y1 - y, h->width, C, p->P);
        } else if (v->of_x) {
            product(w->dz, C, C, h->back, in_rows, w->of_d, h->in, h->in, pixels);
            scatter(v, y, y1, h->width, w->of_d, w->d, is_input);
        }
    }
}

/* The gradient of what a kernel read, from w->g: d (+)=. `weights`: a row for each tap, in the order of `back`. */
static void input_grad(worker *w, const shape *s, const REAL *weights, REAL *d, long height, long width, int add) {
    const long C = w->p->C, S = s->stride, row = row_of(w->p, 1);
    for (long q = 0; q < S * S; q++) {
        const long y = q / S, x = q % S;
        apply(s->back + q, weights + s->first[q] * w->p->P, 0, w->g + BORDER * (row + C), row, C, d + (y * width + x) * C,
              S * width * C, S * C, (height - y + S - 1) / S, (width - x + S - 1) / S, C, w->p->P, add);
    }
}

/* ------------------------------------------------------------------------------------------------------------------ states */

typedef struct { long index, stride, height, width, row, first, last, convolutions, pools[2]; const REAL *scale, *shift; } state;

static state open_state(const plan *p, long s) {
    const cell *c = p->c;
    const long stride = stride_of(p, s);
    state e = {s, stride, stride == 2 ? c->in_height : c->height, stride == 2 ? c->in_width : c->width, row_of(p, stride), 2, 0, 0, {0, 0}, 0, 0};
    while (e.first < c->operations && c->op[e.first].source < s) e.first++;
    for (e.last = e.first; e.last < c->operations && c->op[e.last].source == s; e.last++) {
        const long kind = c->op[e.last].kind;
        if (kind >= REDUCE) e.convolutions = 1;
        if (kind == MAX_POOL || kind == AVERAGE_POOL) e.pools[kind - MAX_POOL] = 1;
    }
    if (s < 2) e.scale = last(p, s)->scale, e.shift = last(p, s)->shift;
    return e;
}
static const REAL *image_of(const plan *p, const state *s, long n) {
    return s->index < 2 ? last(p, s->index)->z + n * p->in_image : p->c->nodes_out + ((s->index - 2) * p->c->batch + n) * p->image;
}
/* The state's image with a border, as the kinds of operations read it: its ReLU; with a border of minus infinity; of zeros. */
static REAL *pad(worker *w, const state *s, REAL *const *pads, long n, int positive) {
    REAL *inside = pads[s->stride == 2] + BORDER * (s->row + w->p->C);
    const long count = s->width * w->p->C;
    copy(image_of(w->p, s, n), count, s->scale, s->shift, positive, inside, s->row, s->height, count, w->p->P);
    return inside;
}
static const REAL *pad_middle(worker *w, const half *first, long n) { /* what the last half of a separable convolution reads */
    const plan *p = w->p;
    REAL *inside = w->y + BORDER * (row_of(p, 1) + p->C);
    const long count = p->c->width * p->C;
    copy(first->z + n * p->image, count, first->scale, first->shift, 1, inside, row_of(p, 1), p->c->height, count, p->P);
    return inside;
}
/* What a term multiplies, and with what scale and shift. */
static const REAL *term(const plan *p, const state *s, long o, long n) {
    return p->c->op[o].kind == SKIP ? image_of(p, s, n) : last(p, o)->z + n * p->image;
}
static const REAL *scale_of(const plan *p, const state *s, long o) { return p->c->op[o].kind == SKIP ? s->scale : last(p, o)->scale; }
static const REAL *shift_of(const plan *p, const state *s, long o) { return p->c->op[o].kind == SKIP ? s->shift : last(p, o)->shift; }
static double weight_of(const plan *p, long o) { return p->c->mixing ? p->c->mixing[p->c->op[o].mix] : 1; }
static int dropped(const plan *p, long o) { return p->c->op[o].mask >= 0 && p->c->masks; } /* skip dropout acts on it */
static double factor_of(const plan *p, long o, long n) {
    const operation *op = p->c->op + o;
    if (dropped(p, o)) return 1 / p->c->kept;
    return p->c->factors && op->factor >= 0 ? p->c->factors[op->factor * p->c->batch + n] : 1;
}
static const REAL *drop(worker *w, long o, long n, const REAL *x) { /* elements that skip dropout keeps, else zeros */
    const plan *p = w->p;
    if (!dropped(p, o)) return x;
    const uint8_t *kept = p->c->masks + (p->c->op[o].mask * p->c->batch + n) * p->image;
    for (long i = 0; i < p->image; i++) w->masked[i] = kept[i] ? x[i] : 0;
    return w->masked;
}

/* Every z of a state, and their norms. In backward (not `fresh`) the norms are known, and z is unless it has to be computed again. */
static void forward_state(worker *w, const state *s, int fresh) {
    plan *p = w->p;
    const cell *c = p->c;
    const shape *pool = s->pools[0] || s->pools[1] ? find_shape(p, 3, 1, s->stride) : 0;
    const int convolutions = s->convolutions && (fresh || c->recompute);
    for (long n = w->first; n < w->last; n++) {
        const REAL *x = convolutions ? pad(w, s, w->x, n, 1) : 0;
        for (long o = s->first; o < s->last && convolutions; o++) {
            const view v = view_of(w, c->op + o, n);
            if (c->op[o].kind == SEPARABLE) half_forward(w, p->halves + 2 * o, x, 0, n, fresh);
            else if (c->op[o].kind >= REDUCE) half_forward(w, p->halves + 2 * o + 1, x, &v, n, fresh);
        }
        for (int k = 0; k < 2; k++) {
            if (!s->pools[k]) continue;
            const REAL *padded = pad(w, s, k ? w->plain : w->large, n, 0);
            REAL *z = p->pools[k] + n * p->image;
            const long row = c->width * p->C;
            if (k) {
                apply(&pool->forward, w->ninths, 0, padded, s->stride * s->row, s->stride * p->C, z, row, p->C, c->height, c->width, p->C, p->P, 0);
                border(z, row, c->height, c->width, p->C, s->stride, s->height, s->width);
            } else
                max_pool(&pool->forward, padded, s->stride * s->row, s->stride * p->C, z, 0, row, c->height, c->width, p->C);
            for (long o = s->first; o < s->last && fresh; o++) /* all norms behind a pool have the same sums: the first one's */
                if (c->op[o].kind == MAX_POOL + k) { dots(z, z, p->image, 1, sums(w, p->halves + 2 * o + 1), p->P); break; }
        }
    }
    if (fresh) ALONE(w, {
        const half *pools[2] = {0};
        for (long o = s->first; o < s->last; o++) {
            half *h = p->halves + 2 * o + 1;
            const long kind = c->op[o].kind;
            if (kind == MAX_POOL || kind == AVERAGE_POOL) {
                const half **pooled = pools + kind - MAX_POOL;
                if (!*pooled) collect(p, h), *pooled = h;
                settle(p, h, (*pooled)->sum, p->count);
            } else if (kind >= REDUCE) {
                if (kind == SEPARABLE) h--;
                settle(p, h, collect(p, h), p->count);
            }
        }
    });
    for (long n = w->first; n < w->last && convolutions; n++) for (long o = s->first; o < s->last; o++)
        if (c->op[o].kind == SEPARABLE) half_forward(w, p->halves + 2 * o + 1, pad_middle(w, p->halves + 2 * o, n), 0, n, fresh);
    if (fresh) ALONE(w, for (long o = s->first; o < s->last; o++) if (c->op[o].kind == SEPARABLE) {
        half *h = p->halves + 2 * o + 1;
        settle(p, h, collect(p, h), p->count);
    });
}

/* Adds a state's terms to the nodes, in one pass a node. */
static void add_terms(worker *w, const state *s) {
    plan *p = w->p;
    const cell *c = p->c;
    for (long n = w->first; n < w->last; n++) for (long o = s->first, end; o < s->last; o = end) {
        const long node = c->op[o].node;
        int started = 0;
        REAL *d = c->nodes_out + (node * c->batch + n) * p->image, *bias = w->rows, *weights = w->rows + p->P;
        taps k = {0};
        clear(bias, p->P);
        for (long e = 2; e < s->first; e++) started |= c->op[e].node == node;
        for (end = o; end < s->last && c->op[end].node == node; end++, k.n++) {
            const REAL *x = term(p, s, end, n), *scale = scale_of(p, s, end), *shift = shift_of(p, s, end);
            const REAL by = (REAL)(weight_of(p, end) * factor_of(p, end, n));
            const int masks = dropped(p, end);
            if (masks) {
                copy(x, p->image, scale, shift, 0, w->masked, p->image, 1, p->image, p->P);
                x = drop(w, end, n, w->masked);
            }
            for (long i = 0; i < p->P; i++) {
                weights[k.n * p->P + i] = by * (masks || !scale ? 1 : scale[i]);
                if (shift && !masks) bias[i] += by * shift[i];
            }
            k.at[k.n] = ((intptr_t)x - (intptr_t)d) / (intptr_t)sizeof(REAL);
        }
        apply(&k, weights, bias, d, p->image, p->C, d, p->image, p->C, 1, c->height * c->width, p->C, p->P, started);
    }
}

static void cell_forward(worker *w) {
    plan *p = w->p;
    const cell *c = p->c;
    for (long i = 0; i < 2; i++) {
        half *h = p->halves + 2 * i + 1;
        for (long n = w->first; n < w->last; n++) {
            const view v = view_of(w, c->op + i, n);
            half_forward(w, h, 0, &v, n, 1);
        }
        ALONE(w, settle(p, h, collect(p, h), c->batch * c->in_height * c->in_width););
    }
    for (long node = 0; node < c->nodes; node++) {
        int any = 0;
        for (long o = 2; o < c->operations; o++) any |= c->op[o].node == node;
        for (long n = w->first; n < w->last && !any; n++) clear(c->nodes_out + (node * c->batch + n) * p->image, p->image);
    }
    for (long s = 0; s < c->nodes + 2; s++) {
        const state e = open_state(p, s);
        if (e.first == e.last) continue;
        forward_state(w, &e, 1);
        add_terms(w, &e);
    }
}

/* ---------------------------------------------------------------------------------------------------------------- backward */

static const REAL *grad_of(worker *w, long o, long n) { /* of a term, before its weight and factor */
    return drop(w, o, n, w->p->c->of_nodes + (w->p->c->op[o].node * w->p->c->batch + n) * w->p->image);
}
static const REAL *times(worker *w, const REAL *a, double factor) {
    if (factor == 1) return a;
    for (long i = 0; i < w->p->P; i++) w->row[i] = (REAL)(a[i] * factor);
    return w->row;
}

/* The gradients that pools pass on to the state's image n: added to d. */
static void pools_backward(worker *w, const state *s, long n, REAL *d) {
    plan *p = w->p;
    const cell *c = p->c;
    const long P = p->P, C = p->C, row = row_of(p, 1), corner = BORDER * (row + C), S = s->stride;
    for (int kind = 0; kind < 2; kind++) {
        if (!s->pools[kind]) continue;
        const shape *window = find_shape(p, 3, 1, S);
        const REAL *z = p->pools[kind] + n * p->image;
        REAL *g = w->g + corner, *weights = w->rows, *bias = w->rows + (c->operations + 1) * P;
        taps k = {1}; /* of z, then of the nodes */
        clear(weights, P), clear(bias, P);
        for (long o = s->first; o < s->last; o++) {
            if (c->op[o].kind != MAX_POOL + kind) continue;
            const half *h = last(p, o);
            const REAL *a = times(w, h->a, factor_of(p, o, n));
            for (long i = 0; i < P; i++) weights[i] += h->b[i], bias[i] += h->c[i], weights[k.n * P + i] = a[i];
            k.at[k.n++] = ((intptr_t)grad_of(w, o, n) - (intptr_t)z) / (intptr_t)sizeof(REAL);
        }
        apply(&k, weights, bias, z, c->width * C, C, g, row, C, c->height, c->width, C, P, 0);
        if (kind) {
            border(g, row, c->height, c->width, C, S, s->height, s->width);
            input_grad(w, window, w->ninths, d, s->height, s->width, 1);
            continue;
        }
        const REAL *padded = pad(w, s, w->large, n, 0);
        max_pool(&window->forward, padded, S * s->row, S * C, 0, w->which + corner, row, c->height, c->width, C);
        for (long q = 0; q < S * S; q++) {
            REAL number[9];
            for (long j = 0; j < window->back[q].n; j++) number[j] = (REAL)window->order[window->first[q] + j];
            max_pool_grad(window->back + q, number, g, w->which + corner, row, d + (q / S * s->width + q % S) * C, S * s->width * C,
                          S * C, (s->height - q / S + S - 1) / S, (s->width - q % S + S - 1) / S, C);
        }
    }
}

static void backward_state(worker *w, const state *s) {
    plan *p = w->p;
    const cell *c = p->c;
    const long image = s->height * s->width * p->C, row = row_of(p, 1), count = c->width * p->C;
    forward_state(w, s, 0);
    for (long n = w->first; n < w->last; n++) for (long o = s->first; o < s->last; o++)
        dots(grad_of(w, o, n), term(p, s, o, n), p->image, factor_of(p, o, n), sums(w, p->halves + 2 * o + 1), p->P);
    ALONE(w, for (long o = s->first; o < s->last; o++)
        pull(p, p->halves + 2 * o + 1, weight_of(p, o), p->count, scale_of(p, s, o), shift_of(p, s, o),
             c->of_mixing ? c->of_mixing + c->op[o].mix : 0););
    /* Last halves of separable convolutions, up to the gradient dy of the first halves' normalised outputs. */
    for (long n = w->first; n < w->last; n++)
        for (long o = s->first, k = 0; o < s->last; o++) {
            if (c->op[o].kind != SEPARABLE) continue;
            half *first = p->halves + 2 * o, *h = first + 1;
            const REAL *y = pad_middle(w, first, n);
            REAL *dy = p->dy[k++] + n * p->image;
            half_backward(w, h, y, 0, grad_of(w, o, n), times(w, h->a, factor_of(p, o, n)), n, 0);
            const REAL *inside = w->g + BORDER * (row + p->C);
            for (long i = 0, rows; i < c->height; i += rows) {
                const long at = i * count;
                rows = MIN(MAX(1, BLOCK / count), c->height - i);
                apply(h->shape->back, h->back_taps, 0, inside + i * row, row, p->C, dy + at, count, p->C, rows, c->width, p->C, p->P, 0);
                mask(dy + at, dy + at, 0, y + i * row, row, first->z + n * p->image + at, rows, count, sums(w, first), p->P);
            }
        }
    ALONE(w, for (long o = s->first; o < s->last; o++) if (c->op[o].kind == SEPARABLE)
        pull(p, p->halves + 2 * o, 1, p->count, 0, 0, 0););
    /* What reads the state itself. */
    for (long n = w->first; n < w->last; n++) {
        REAL *d = s->index < 2 ? p->of_state + n * image : c->of_nodes + ((s->index - 2) * c->batch + n) * image;
        if (s->index < 2) clear(d, image);
        if (s->convolutions) {
            const REAL *x = pad(w, s, w->x, n, 1);
            clear(w->of_relu, image);
            for (long o = s->first, i = 0; o < s->last; o++) {
                if (c->op[o].kind < REDUCE) continue;
                const view v = view_of(w, c->op + o, n);
                half *h = p->halves + 2 * o + 1;
                if (c->op[o].kind == SEPARABLE)
                    h--, half_backward(w, h, x, 0, p->dy[i++] + n * p->image, h->a, n, 0);
                else
                    half_backward(w, h, x, &v, grad_of(w, o, n), times(w, h->a, factor_of(p, o, n)), n, 0);
                if (h->shape) input_grad(w, h->shape, h->back_taps, w->of_relu, s->height, s->width, 1);
            }
            mask(d, w->of_relu, s->index >= 2, x, s->row, 0, s->height, s->width * p->C, 0, p->P);
        }
        for (long o = s->first; o < s->last; o++) {
            if (c->op[o].kind != SKIP) continue;
            const taps k = {1, 0, 0, {((intptr_t)grad_of(w, o, n) - (intptr_t)d) / (intptr_t)sizeof(REAL)}};
            apply(&k, times(w, last(p, o)->a, factor_of(p, o, n)), 0, d, image, p->C, d, image, p->C, 1, s->height * s->width, p->C, p->P, 1);
        }
        pools_backward(w, s, n, d);
    }
}

static void write_grads(plan *p) {
    const long C = p->C, P = p->P;
    for (long o = 0; o < 2 * p->c->operations; o++) {
        half *h = p->halves + o;
        if (!h->in) continue;
        const long rows = UP(h->in), upper = C / 2, half_in = h->in / 2;
        for (long t = 1; t < p->c->threads; t++) for (long i = 0; i < C * rows; i++) h->sum_back[i] += h->sum_back[t * C * rows + i];
        for (long c = 0; c < C; c++) {
            const REAL *from = h->sum_back + c * rows;
            if (!h->weight2) memcpy(h->of_weight + c * h->in, from, h->in * sizeof(REAL));
            else if (c < upper) memcpy(h->of_weight + c * half_in, from, half_in * sizeof(REAL));
            else memcpy(h->of_weight2 + (c - upper) * half_in, from + half_in, half_in * sizeof(REAL));
        }
        if (!h->shape) continue;
        const long n = h->shape->forward.n, end = h->shape->stride == 1 ? P : C; /* with stride 2 a vector has one pixel */
        for (long j = 0; j < n; j++) for (long c = 0; c < C; c++) {
            REAL total = 0;
            for (long t = 0; t < p->c->threads; t++) for (long i = c; i < end; i += C) total += h->sum_taps[(t * n + j) * P + i];
            h->of_depthwise[c * n + j] = total;
        }
    }
}

static void cell_backward(worker *w) {
    plan *p = w->p;
    const cell *c = p->c;
    for (long s = c->nodes + 1; s >= 0; s--) {
        const state e = open_state(p, s);
        if (e.first < e.last) backward_state(w, &e);
        if (s > 1) continue;
        half *h = p->halves + 2 * s + 1;
        for (long n = w->first; n < w->last; n++) {
            if (e.first == e.last) clear(p->of_state + n * p->in_image, p->in_image);
            dots(p->of_state + n * p->in_image, h->z + n * p->in_image, p->in_image, 1, sums(w, h), p->P);
        }
        ALONE(w, pull(p, h, 1, c->batch * c->in_height * c->in_width, 0, 0, 0););
        for (long n = w->first; n < w->last; n++) {
            const view v = view_of(w, c->op + s, n);
            if (v.of_x && v.halves == 2)
                for (long k = 0; k < v.nodes; k++) clear(v.of_x + k * v.node, v.height * v.width * v.channels);
            half_backward(w, h, 0, &v, p->of_state + n * p->in_image, h->a, n, 1);
        }
    }
    ALONE(w, write_grads(p););
}

/* ------------------------------------------------------------------------------------------------------------------- calls */

static void work(worker *w, int backward) {
    const cell *c = w->p->c;
    w->first = w->id * c->batch / c->threads, w->last = (w->id + 1) * c->batch / c->threads;
    if (backward) cell_backward(w);
    else cell_forward(w);
}

typedef struct { worker w; int backward; } errand;
static void *run(void *argument) {
    errand *e = argument;
    while (!atomic_load(&e->w.p->started)) sched_yield();
    if (e->w.id < e->w.p->c->threads) work(&e->w, e->backward);
    return 0;
}

/* 0, or 1: there is not enough memory. */
static int call(cell *c, int backward) {
    plan p;
    memset(&p, 0, sizeof p);
    int short_of_memory = setjmp(p.failed);
    if (!short_of_memory) {
        make_plan(&p, c, backward);
        errand *errands = take(&p, c->threads * sizeof *errands);
        pthread_t *threads = take(&p, c->threads * sizeof *threads);
        for (long t = 0; t < c->threads; t++) plan_worker(&errands[t].w, &p, t), errands[t].backward = backward;
        long running = 1;
        while (running < c->threads && !pthread_create(threads + running, 0, run, errands + running)) running++;
        c->threads = running; /* fewer than asked for, where the system has no more */
        atomic_store(&p.started, 1);
        work(&errands[0].w, backward);
        for (long t = 1; t < running; t++) pthread_join(threads[t], 0);
    }
    while (p.chunks) {
        chunk *before = p.chunks->before;
        free(p.chunks);
        p.chunks = before;
    }
    return short_of_memory;
}

int forward(cell *c) { return call(c, 0); }
int backward(cell *c) { return call(c, 1); }
long number_of_bytes(void) { return sizeof(REAL); }
