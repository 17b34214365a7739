"""Two controls that marimo has not: a stepper that plays, and a question with its verdict."""

from collections.abc import Callable

import anywidget
import traitlets


class Stepper(anywidget.AnyWidget):
    """A step from 0 to `last`: a slider for the arrow keys, and buttons to go and to play."""

    _esm = """
    export function render({ model, el }) {
      el.innerHTML = `<div class="stepper">
        <button type="button" aria-label="step back">‹</button>
        <button type="button" class="play"></button>
        <button type="button" aria-label="step on">›</button>
        <input type="range" min="0" step="1"><output></output></div>`;
      const [back, play, on] = el.querySelectorAll("button");
      const slider = el.querySelector("input"), output = el.querySelector("output");
      slider.max = model.get("last");
      slider.ariaLabel = model.get("label");
      let timer = null;
      const go = (step) => {
        model.set("step", Math.min(Math.max(step, 0), model.get("last")));
        model.save_changes();
      };
      const show = () => {
        slider.value = model.get("step");
        output.textContent = `${model.get("step")} of ${model.get("last")}`;
        play.textContent = timer ? "❚❚ pause" : "▶ play";
      };
      const stop = () => { clearInterval(timer); timer = null; show(); };
      const start = () => {
        if (model.get("step") === model.get("last")) go(0);
        timer = setInterval(() => {
          go(model.get("step") + 1);
          if (model.get("step") === model.get("last")) stop();
        }, model.get("pause"));
        show();
      };
      play.onclick = () => (timer ? stop() : start());
      back.onclick = () => { stop(); go(model.get("step") - 1); };
      on.onclick = () => { stop(); go(model.get("step") + 1); };
      slider.oninput = () => { const to = Number(slider.value); stop(); go(to); };
      model.on("change:step", show);
      show();
      return () => clearInterval(timer);
    }"""
    _css = """
    .stepper { display: flex; flex-wrap: wrap; align-items: center; gap: .4rem }
    .stepper button { border: 1px solid currentColor; border-radius: 6px; padding: .1rem .6rem;
        background: none; color: inherit; cursor: pointer }
    .stepper .play { min-width: 5.5rem }
    .stepper input { width: 12rem; max-width: 45vw }
    """
    step = traitlets.Int(0).tag(sync=True)
    last = traitlets.Int(1).tag(sync=True)
    label = traitlets.Unicode("step").tag(sync=True)
    pause = traitlets.Int(900).tag(sync=True)  # milliseconds a step


class Question(anywidget.AnyWidget):
    """A question, a box for the answer, and beside it what is said to it; a hint to open."""

    _esm = """
    export function render({ model, el }) {
      el.innerHTML = `<div class="question"><label><span></span>
        <input type="text" autocomplete="off" size="12"></label> <output></output>
        <details><summary>Hint</summary><p></p></details></div>`;
      const [text, box, said] = ["span", "input", "output"].map((e) => el.querySelector(e));
      text.textContent = model.get("text");
      el.querySelector("p").textContent = model.get("hint");
      box.value = model.get("given");
      const show = () => { said.textContent = model.get("verdict"); };
      box.onchange = () => { model.set("given", box.value); model.save_changes(); };
      model.on("change:verdict", show);
      show();
    }"""
    _css = """
    .question { margin: .6rem 0 }
    .question span { display: block }
    .question input { border: 1px solid currentColor; border-radius: 6px; padding: .1rem .4rem;
        background: none; color: inherit }
    .question output { margin-left: .6rem; font-weight: 600 }
    .question summary { cursor: pointer; width: fit-content }
    """
    text = traitlets.Unicode().tag(sync=True)
    hint = traitlets.Unicode().tag(sync=True)
    given = traitlets.Unicode().tag(sync=True)
    verdict = traitlets.Unicode().tag(sync=True)

    def __init__(self, text: str, hint: str, judge: Callable[[str], str]) -> None:
        super().__init__(text=text, hint=hint)
        self.observe(lambda change: setattr(self, "verdict", judge(change["new"])), "given")
