// An image with a mask drawn on it. The canvas has the pixels of the image; its alpha channel is the mask.
export default {
  template: `
    <div class="mask-canvas" :style="{ aspectRatio: width / height }">
      <img v-if="src" :src="src" alt="Image to inpaint" draggable="false" />
      <canvas ref="canvas" :width="width" :height="height" role="img" aria-label="Mask: drawn where to sample"
        @pointerdown="begin" @pointermove="move" @pointerup="end" @pointercancel="end"></canvas>
    </div>`,
  props: { src: String, width: Number, height: Number, tool: String, brush: Number },
  methods: {
    context() {
      return this.$refs.canvas.getContext("2d", { willReadFrequently: true });
    },
    place(event) {
      const box = this.$refs.canvas.getBoundingClientRect();
      return [
        ((event.clientX - box.left) * this.width) / box.width,
        ((event.clientY - box.top) * this.height) / box.height,
      ];
    },
    begin(event) {
      this.$refs.canvas.setPointerCapture(event.pointerId);
      this.start = this.last = this.place(event);
      this.before = this.context().getImageData(0, 0, this.width, this.height);
      this.move(event);
    },
    move(event) {
      if (!this.start) return;
      const context = this.context();
      const [x, y] = this.place(event);
      if (this.tool === "rectangle") {
        context.putImageData(this.before, 0, 0);
        const [left, top] = [Math.min(x, this.start[0]), Math.min(y, this.start[1])].map(Math.floor);
        const [right, bottom] = [Math.max(x, this.start[0]), Math.max(y, this.start[1])].map(Math.ceil);
        context.fillRect(left, top, right - left, bottom - top);
      } else {
        context.globalCompositeOperation = this.tool === "eraser" ? "destination-out" : "source-over";
        context.lineWidth = this.brush;
        context.lineCap = "round";
        context.beginPath();
        context.moveTo(...this.last);
        context.lineTo(x, y);
        context.stroke();
        context.globalCompositeOperation = "source-over";
      }
      this.last = [x, y];
    },
    end() {
      if (!this.start) return;
      this.start = null;
      this.send();
    },
    rectangle(left, top, width, height) {
      this.context().fillRect(left, top, width, height);
      this.send();
    },
    erase() {
      this.context().clearRect(0, 0, this.width, this.height);
    },
    draw(url) {
      const image = new Image();
      image.onload = () => {
        this.erase();
        this.context().drawImage(image, 0, 0);
      };
      image.src = url;
    },
    send() {
      this.$emit("mask", this.$refs.canvas.toDataURL("image/png"));
    },
  },
};
